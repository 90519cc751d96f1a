"""Study files: what they expand to, and how mistakes are told."""

import json
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.errors import UserError
from launch.study import read_study, single_cell

BASE = {
    "name": "small",
    "model": {"kind": "mlp", "depth": 4, "width": 32, "bottleneck": 4},
    "data": {"kind": "digits"},
    "compressor": "powersgd",
    "policy": "bound",
    "train": {"steps": 5, "batch_size": 32},
}


@pytest.fixture
def study(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
        return path

    return write


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


class TestSweep:
    def test_it_expands_to_the_product_of_its_lists(self, study):
        path = study(sweep={"model.bottleneck": [2, 4], "train.seed": [0, 1, 2]})
        cells = read_study(path).cells
        assert [(cell.config.model.bottleneck, cell.config.train.seed) for cell in cells] == [
            (bottleneck, seed) for bottleneck in (2, 4) for seed in (0, 1, 2)
        ]
        assert len({cell.config.digest for cell in cells}) == len({cell.name for cell in cells}) == 6

    def test_keys_joined_by_commas_vary_together(self, study):
        path = study(sweep={"compressor, policy": [["dense", "none"], ["powersgd", {"kind": "fixed", "rank": 2}]]})
        cells = read_study(path).cells
        assert [(cell.config.compressor[0].kind, cell.config.policy.kind) for cell in cells] == [
            ("dense", "none"),
            ("powersgd", "fixed"),
        ]

    def test_an_override_of_a_swept_key_takes_it_out_of_the_sweep(self, study):
        path = study(sweep={"train.seed": [0, 1]})
        cells = read_study(path, ["train.seed=7"]).cells
        assert [cell.config.train.seed for cell in cells] == [7]

    def test_a_candidate_list_of_compressors_is_kept(self, study):
        cell = read_study(study(compressor=["dad", {"kind": "powersgd", "oversample": 2}])).cells[0]
        assert [compressor.kind for compressor in cell.config.compressor] == ["dad", "powersgd"]

    def test_another_kind_drops_the_settings_of_the_old_one(self, study):
        cell = read_study(study(), ["policy.offset=-1", "policy.kind=fixed", "policy.rank=3"]).cells[0]
        assert cell.config.policy.rank == 3

    def test_only_cells_must_be_consistent(self, study):
        path = study(compressor="powersgd", policy="none", sweep={"policy": ["bound", {"kind": "fixed", "rank": 1}]})
        assert len(read_study(path).cells) == 2

    def test_an_empty_sweep_section_is_no_sweep(self, study):
        assert len(read_study(study(sweep=None)).cells) == 1
        assert len(read_study(study(sweep=None), ["sweep.train.seed=[1, 2]"]).cells) == 2


MISTAKES = {
    "unknown key": (["model.botleneck=3"], ["model.botleneck", "'botleneck'", "did you mean 'bottleneck'"]),
    "unknown section": (["trian={}"], ["trian", "did you mean 'train'"]),
    "wrong type": (["model.depth=deep"], ["model.depth", "'deep'", "integer"]),
    "alpha above one": (["model.alpha=1.5"], ["model.alpha", "1.5", "less than or equal to 1"]),
    "alpha below zero": (["model.alpha=-0.1"], ["model.alpha", "-0.1", "greater than or equal to 0"]),
    "rank zero": (["policy={kind: fixed, rank: 0}"], ["policy.rank", "found 0", "greater than or equal to 1"]),
    "no workers": (["cluster.workers=0"], ["cluster.workers", "found 0"]),
    "unknown model": (["model=mlpp"], ["model", "'mlpp'", "did you mean 'mlp'"]),
    "unknown compressor": (["compressor=power"], ["compressor", "'power'", "bf16, dad, dense", "package.module:Class"]),
    "unknown dtype": (["train.dtype=float23"], ["train.dtype", "'float23'", "did you mean 'float32'"]),
    "empty sweep list": (["sweep.train.seed=[]"], ["sweep.train.seed", "empty list"]),
    "sweep of nothing": (["sweep.foo=[1]"], ["sweep.foo", "unknown key"]),
    "a ranked method without a policy": (["policy=none"], ["needs a rank"]),
    "uneven batch": (["train.batch_size=33"], ["33", "multiple of 2"]),
    "not key=value": (["seed"], ["key=value"]),
    "a batch larger than the data": (["train.batch_size=5000"], ["5000", "1437"]),
    "a kind that is no name": (["model={kind: [1]}"], ["model", "found [1]"]),
    "a missing kind": (["data={task: classification}"], ["data", "no kind"]),
    "two clusters": (["sweep.cluster.address=[auto, null]"], ["sweep.cluster.address", "one cluster"]),
    "a fold that is not": (["train.fold=5"], ["train.fold", "less than 5"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_message_with_exit_code_2(study, capsys, name):
    overrides, words = MISTAKES[name]
    arguments = [word for override in overrides for word in ("--set", override)]
    code, _, err = run(capsys, "run", study(), *arguments, "--dry-run")
    assert code == 2
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("content", "word"),
    [("name: [", "broken YAML"), ("- 1", "found list"), ("", "found NoneType"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_file_that_is_no_study_is_told(tmp_path, capsys, content, word):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = run(capsys, "run", path)
    assert (code, word in err, str(path) in err) == (2, True, True)


def test_a_missing_file_is_told(tmp_path, capsys):
    code, _, err = run(capsys, "run", tmp_path / "none.yaml")
    assert code == 2
    assert "No such file" in err


def test_yaml_cannot_run_code(tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    assert run(capsys, "run", path)[0] == 2
    assert not (tmp_path / "owned").exists()


def test_a_dry_run_prints_plans_and_bytes_and_starts_nothing(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "run", study(sweep={"train.seed": [0, 1]}), "--dry-run")
    assert code == 0
    assert out.count("0.weight") == 2
    assert "powersgd" in out
    assert "bytes a step and worker" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_bound_prints_a_table_and_json(capsys):
    arguments = ["bound", "--model", "mlp", "--set", "model.bottleneck=8", "--set", "model.depth=6"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "4 (8 wide)" in out
    code, out, _ = run(capsys, *arguments, "--json")
    bounds = json.loads(out)["bounds"]
    assert {bounds[name]["rank"] for name in bounds} == {8, 9}


def test_every_study_that_ships_is_valid():
    folder = Path(__file__).parents[2] / "mlflow_configs"
    studies = sorted(folder.glob("*.yaml"))
    assert studies
    for path in studies:
        assert read_study(path).cells


def test_mistakes_in_values_of_several_types_name_the_key_alone():
    values = {"model": "mlp", "data": {"kind": "gaussian", "mean": "abc"}, "compressor": "dense"}
    with pytest.raises(UserError) as told:
        single_cell(values)
    assert [line.split(": found")[0] for line in str(told.value).splitlines()] == ["settings: data.mean"] * 2


def test_a_single_cell_is_named_in_words():
    values = {"model": {"kind": "mlp", "width": 8}, "data": "digits", "compressor": "dense"}
    assert single_cell(values).name == "mlp(width=8)"
