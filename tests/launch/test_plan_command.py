"""`gradrank plan`: how each gradient would be sent, all methods side by side, and where one overtakes another."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from launch.cli import main

QUICKSTART = Path(__file__).parents[2] / "mlflow_configs" / "quickstart.yaml"

NETS = """
import torch
from torch import nn

def make():
    print("noise of the user's own")
    layers = [nn.Linear(256, 256), nn.Linear(256, 8), nn.Linear(8, 256), nn.Linear(256, 32)]
    return {"model": nn.Sequential(*layers), "args": (torch.zeros(4, 256),), "loss": nn.functional.mse_loss,
            "targets": (torch.zeros(4, 32),)}
"""

LINKS = ("--bandwidth", "1gbit", "--latency", "20us")


@pytest.fixture(autouse=True)
def _in_a_folder_with_nets(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("nets", None)


def run(capsys, command: str, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([command, *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def well(capsys, *arguments: str) -> str:
    code, out, err = run(capsys, "plan", *arguments)
    assert code == 0, err
    return out


def test_a_table_tells_the_plan_and_all_methods_side_by_side(capsys):
    out = well(capsys, "--set", "model.bottleneck=8", "--set", "model.width=512", "--workers", "4", *LINKS)
    lines = out.splitlines()
    assert lines[0] == "mlp (width 512, bottleneck 8) on digits: 128 samples, 4 workers, 1 Gbit/s, 20 µs"
    (first,) = [line.split() for line in lines if line.strip().startswith("0.weight")]
    assert first[:9] == ["0.weight", "512", "×", "64", "subspace", "8", "8", "2.0", "KiB"]
    methods = [line.split()[0] for line in lines if re.match(r" (dense|powersgd|subspace|dad|rank_dad|auto) ", line)]
    assert methods == ["dense", "powersgd", "subspace", "dad", "rank_dad", "auto"]
    (auto,) = [line for line in lines if line.startswith(" auto")]
    assert "below" in auto
    assert "as if nothing overlapped" in out


def test_the_example_of_the_documentation_prints_what_it_says(capsys):
    text = (QUICKSTART.parents[1] / "docs" / "cost.md").read_text()
    (command,) = re.findall(r"^gradrank plan (.*)$", text, flags=re.MULTILINE)
    (shown,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    printed = [line.rstrip() for line in well(capsys, *command.split()).splitlines()]
    assert [line for line in shown.splitlines() if line.strip("─ ") and line not in printed] == []


def test_the_code_of_the_documentation_predicts_a_step(capsys):
    text = (QUICKSTART.parents[1] / "docs" / "cost.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    exec(compile(code, "cost.md", "exec"), names)
    handed, wire, collectives, compute, communication = map(float, capsys.readouterr().out.split())
    assert 0 < handed < names["plan"].dense.bytes / 10
    assert wire > handed
    assert collectives >= 1
    assert communication == pytest.approx(8 * wire / 25e9 + names["cost"].collectives * 30 * 20e-6, rel=0.5)
    assert 0 < compute < 1


def test_json_holds_what_the_tables_tell(capsys):
    found = json.loads(well(capsys, "--model", "nets:make", "--workers", "2", *LINKS, "--json"))
    assert (found["world_size"], found["local_size"]) == (2, 1)
    assert found["network"]["bandwidth"] == 1e9
    methods = found["methods"]
    assert list(methods) == ["dense", "powersgd", "subspace", "dad", "rank_dad", "auto"]
    assert methods["dense"]["wire_bytes"] == 4 * (256 * 256 + 256 + 2 * 256 * 8 + 8 + 256 + 256 * 32 + 32)
    assert methods["auto"]["step_s"] <= min(method["step_s"] for method in methods.values()) * (1 + 1e-12)
    assert methods["auto"]["lossless"]
    assert sum(row["bytes"] for row in found["plan"]) == methods["auto"]["bytes"]
    for method in methods.values():
        assert method["step_s"] == pytest.approx(method["compute_s"] + method["communication_s"])
    (dad, *_) = found["workers"]
    assert dad["method"] == "dad"
    assert dad["loses_from"] is None or dad["loses_from"] >= 2


def test_without_links_plans_go_by_bytes(capsys):
    found = json.loads(well(capsys, "--model", "nets:make", "--workers", "2", "--json"))
    assert found["network"] is None
    wire = {name: method["wire_bytes"] for name, method in found["methods"].items()}
    assert wire["auto"] == min(wire.values())
    assert "step_s" not in found["methods"]["auto"]
    (dad, *_) = found["workers"]
    assert dad["loses_from"] >= 2
    later = json.loads(well(capsys, "--model", "nets:make", "--workers", str(dad["loses_from"]), "--json"))
    assert later["methods"]["dad"]["wire_bytes"] >= later["methods"][dad["than"]]["wire_bytes"]
    out = well(capsys, "--model", "nets:make", "--workers", "2")
    assert f"dad sends more than {dad['than']} from {dad['loses_from']} workers on" in out


def test_nodes_leave_out_methods_that_send_rows(capsys):
    options = ("--workers", "4", "--local-size", "2", "--local-bandwidth", "200gbit", "--local-latency", "2us", *LINKS)
    found = json.loads(well(capsys, "--model", "nets:make", *options, "--json"))
    assert list(found["refused"]) == ["dad", "rank_dad"]
    assert found["methods"]["dense"]["inside_bytes"] > 0
    assert found["network"]["local_bandwidth"] == 2e11
    assert "2 to a node" in well(capsys, "--model", "nets:make", *options)


def test_a_compressor_and_a_policy_are_given_as_studies_have_them(capsys):
    options = ("--compressor", "[powersgd, {kind: subspace, widest: 16}]", "--policy", "{kind: fixed, rank: 2}")
    found = json.loads(well(capsys, "--model", "nets:make", "--workers", "2", *options, "--json"))
    assert list(found["methods"])[-1] == "powersgd+subspace"
    assert not found["methods"]["powersgd"]["lossless"]
    alone = json.loads(well(capsys, "--model", "nets:make", "--compressor", "dad", "--json"))
    assert list(alone["methods"]) == ["dense", "powersgd", "subspace", "rank_dad", "dad"]


def test_this_machine_is_measured_when_asked(capsys):
    default, measured = (
        json.loads(well(capsys, "--model", "nets:make", "--json", *LINKS, *more))["methods"]["dense"]["compute_s"]
        for more in ((), ("--measure",))
    )
    assert default != measured > 0


def test_networks_of_a_study_are_planned_once_each(capsys):
    found = json.loads(well(capsys, str(QUICKSTART), "--workers", "4", "--json"))
    assert len(found["networks"]) == 2
    assert all(network["world_size"] == 4 and network["cells"] for network in found["networks"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bandwidth", "fast"], ["--bandwidth", "'fast'", "25gbit"]),
        (["--bandwidth", "1gbit", "--latency", "soon"], ["--latency", "'soon'", "20us"]),
        (["--latency", "20us"], ["--latency", "without --bandwidth"]),
        (["--local-latency", "20us"], ["--local-latency", "without --bandwidth"]),
        (["--workers", "4", "--local-size", "3"], ["--local-size: found 3", "divisor of the 4 workers"]),
        (["--local-size", "0"], ["--local-size: found 0"]),
        (["--compressor", "powersdg"], ["'powersdg'", "did you mean 'powersgd'"]),
        (["--compressor", "[auto, dad]"], ["'auto'", "give it alone"]),
        (["--compressor", "{kind: ["], ["--compressor", "not YAML"]),
        (["--compressor", "3"], ["--compressor", "a name or a mapping"]),
        (["--policy", "{kind: fixed}"], ["rank"]),
        (["--model", "nest:make"], ["no module 'nest'"]),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, words):
    code, _, err = run(capsys, "plan", *arguments)
    assert code == 2
    (told,) = err.splitlines()
    assert told.startswith("gradrank: ")
    assert all(word in told for word in words), told


def study(tmp_path: Path, **changes) -> str:
    values = {
        "name": "small",
        "model": {"kind": "mlp", "width": 32, "bottleneck": 4},
        "data": {"kind": "digits"},
        "compressor": "auto",
        **changes,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_study_takes_auto_and_names_its_links(capsys, tmp_path):
    code, by_bytes, err = run(capsys, "run", study(tmp_path), "--dry-run")
    assert code == 0, err
    assert "subspace" in by_bytes
    fast = {"bandwidth": "1000gbit", "latency": "20us"}
    code, by_time, err = run(capsys, "run", study(tmp_path, cluster=fast), "--dry-run")
    assert code == 0, err
    assert "subspace" not in by_time


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": {"bandwidth": "fast"}}, ["cluster.bandwidth", "'fast'", "25gbit"]),
        ({"cluster": {"latency": "20us"}}, ["cluster", "bandwidth"]),
        ({"compressor": ["auto", "dad"]}, ["'auto'", "give it alone"]),
        ({"compressor": "auot"}, ["'auot'", "did you mean 'auto'"]),
    ],
)
def test_mistakes_in_a_study_are_told(capsys, tmp_path, changes, words):
    code, _, err = run(capsys, "run", study(tmp_path, **changes), "--dry-run")
    assert code == 2
    assert all(word in err for word in words), err
