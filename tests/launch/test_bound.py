"""`gradrank bound`: built-in networks, studies, anyone's code; as a table, JSON, a path or a picture."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compress import RankBound, rank_bounds
from launch.bound_report import human, percent
from launch.bound_rows import LONG, rows_of
from launch.cli import main

QUICKSTART = Path(__file__).parents[2] / "mlflow_configs" / "quickstart.yaml"

NETS = """
import torch
from types import SimpleNamespace
from torch import nn

INPUTS = torch.zeros(16, 32)

class Blocks(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(count))
        self.head = nn.Linear(32, 4)
    def forward(self, x):
        for block in self.blocks:
            x = x + torch.nn.functional.leaky_relu(block(x), 0.5)
        return self.head(x)

def make(count=2):
    print("noise of the user's own")
    return {"model": Blocks(count), "args": (INPUTS,), "loss": nn.functional.mse_loss,
            "targets": (torch.zeros(16, 4),)}

def long(): return make(30)

def frozen():
    made = make()
    made["model"].blocks.requires_grad_(False)
    return made

def inverse():
    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        def forward(self, x):
            return self.second(torch.linalg.inv(self.first(x)))
    return SimpleNamespace(model=Inverse(), args=(torch.zeros(16, 16),), input_rank=3, training=False)

def keywords():
    class Keywords(nn.Linear):
        def forward(self, *, x):
            return super().forward(x).sum()
    return SimpleNamespace(model=Keywords(32, 64).half(), args=(), kwargs={"x": INPUTS.half()}, loss=None, input_rank=3)

def vectors(): return {"model": nn.LayerNorm(32), "args": (INPUTS,)}

def fails():
    raise RuntimeError("out of luck\\nand more lines")

def leaves(): raise SystemExit(3)

def nothing(): return None
def misspelt(): return {**make(), "target": ()}
def bare_tensor(): return {**make(), "args": INPUTS}
def bare_number(): return {**make(), "input_rank": 0}
def untraceable():
    class Branch(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)
    return {"model": Branch(32, 32), "args": (torch.zeros(16, 32),)}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_nets(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("import nets\nnets.nowhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("nets", "broken"):
        sys.modules.pop(name, None)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["bound", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def well(capsys, *arguments: str) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


# --- built-in networks ------------------------------------------------------------------------------------------


def test_a_table_has_ranks_and_bytes_of_each_layer_and_totals(capsys):
    lines = well(capsys, "--set", "model.bottleneck=8", "--workers", "4").splitlines()
    assert lines[0] == "mlp (bottleneck 8) on digits: 128 samples, 4 workers"
    (first,) = [line.split() for line in lines if line.strip().startswith("0.weight")]
    assert first[:6] == ["0.weight", "128", "×", "64", "8", "12%"]
    assert first[6:10] == ["32.0", "KiB", "6.0", "KiB"]  # 8 · (128 + 64) · 4 bytes of 128 · 64 · 4
    assert "adjoint:" in first
    (total,) = [line.split() for line in lines if "4 matrices" in line]
    assert total == ["4", "matrices", "45.0", "KiB", "18.9", "KiB"]  # 2.weight and 4.weight no more than dense
    assert any("1.1 KiB of biases" in line for line in lines)
    assert not any("linear" in line for line in lines)  # it is the bound everywhere


def test_linear_rank_and_certified_loss_are_shown_where_they_differ(capsys):
    out = well(capsys, "--set", "model.alpha=0.5", "--set", "model.bottleneck=8")
    (heading,) = [line.split() for line in out.splitlines() if line.strip().startswith("parameter")]
    assert heading[5:7] == ["linear", "loss"]
    (first,) = [line.split() for line in out.splitlines() if line.strip().startswith("0.weight")]
    assert first[4:9] == ["64", "100%", "8", "≤", "0.58"]  # 1 − ¾³: three Leaky-ReLUs of slope ½
    (last,) = [line.split() for line in out.splitlines() if line.strip().startswith("4.weight")]
    assert last[4:8] == ["8", "100%", "4.0", "KiB"]
    assert "N_A · N_Δ" in out


def test_json_is_what_the_bounds_are_and_their_bytes(capsys):
    found = json.loads(well(capsys, "--set", "model.bottleneck=8", "--json", "--accumulation-steps", "2"))
    assert found["accumulation_steps"] == 2
    assert found["input_shapes"][0] == [64, 64]
    bound = found["bounds"]["0.weight"]
    assert (bound["rank"], bound["bytes_dense"], bound["bytes_at_bound"]) == (8, 128 * 64 * 4, 8 * 192 * 4)
    assert found["bytes"]["dense"] == sum(bound["bytes_dense"] for bound in found["bounds"].values())
    assert found["bytes"]["vectors"] == 4 * (128 + 8 + 128 + 10)


def test_a_path_tells_both_sides_and_which_sets_the_bound(capsys):
    out = well(capsys, "--set", "model.bottleneck=8", "--explain", "6.")
    assert "6.weight, 10 × 128" in out
    assert "bound 9 of 10" in out
    assert re.search(r"inputs A: 9 of 128 dimensions: they set the bound", out)
    assert "anything 64 wide ≤ 64 → 0.weightᵀ ≤ 64 → 2.weightᵀ ≤ 8 → 4.weightᵀ ≤ 8" in out
    assert "the constant 1 ≤ 1 → 4.bias ≤ 1" in out
    assert "→ less its mean ≤ 9" in out
    assert "rows: 128 of each worker" in out


def test_a_path_tells_when_rows_set_the_bound(capsys):
    out = well(capsys, "--batch-size", "4", "--explain", "2.weight")
    assert "bound 4 of 128: rows: 4" in out
    assert "rows: 4 of each worker in a step: they set the bound" in out
    assert "dimensions: they" not in out


@pytest.mark.parametrize("name", ["picture.png", "new/picture.svg"])
def test_a_picture_is_drawn(capsys, tmp_path, name):
    out = well(capsys, "--set", "model.alpha=0.5", "--picture", name)
    assert f"Picture: {name}" in out
    written = (tmp_path / name).read_bytes()
    assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    json.loads(well(capsys, "--json", "--picture", name))  # and nothing but JSON is printed


# --- studies ------------------------------------------------------------------------------------------------------


def test_cells_of_a_study_that_share_a_network_are_shown_once(capsys):
    out = well(capsys, str(QUICKSTART))
    titles = [line for line in out.splitlines() if "on digits" in line]
    assert len(titles) == 2
    assert "alpha 0.1" not in titles[0]
    assert "alpha 0.1" in titles[1]
    first, second = out.split(titles[1])
    assert (first.count("seed="), second.count("seed=")) == (10, 4)


def test_options_change_a_study(capsys):
    options = ("--workers", "4", "--set", "model.alpha=0.3", "--set", "model.width=64")
    options += ("--set", "sweep.model.alpha, compressor, policy=[[1.0, dad, none]]")
    found = json.loads(well(capsys, str(QUICKSTART), *options[:2], *options[4:], "--json"))
    (network,) = found["networks"]
    assert network["world_size"] == 4
    assert network["bounds"]["2.weight"]["shape"] == [64, 64]
    assert len(network["cells"]) == 2
    assert network["bytes"]["dense"] == 4 * (64 * 64 * 3 + 2 * 64 * 8 + 640)


# --- one's own ------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_is_bounded(capsys):
    code, out, err = run(capsys, "--model", "nets:make", "--workers", "2", "--json")
    assert code == 0
    assert "noise" in err
    found = json.loads(out)
    assert found["world_size"] == 2
    assert found["bounds"]["head.weight"]["rank"] == 4
    assert found["bounds"]["head.weight"]["rows"] == 16


def test_an_object_with_all_fields_serves_too(capsys):
    found = json.loads(well(capsys, "--model", "nets:keywords", "--json"))
    assert found["bounds"]["weight"]["bytes_dense"] == 2 * 32 * 64  # of half-precision numbers
    assert found["bounds"]["weight"]["rank"] == 1
    found = json.loads(well(capsys, "--model", "nets:inverse", "--json"))
    assert found["training"] is False
    assert found["bounds"]["first.weight"]["rank"] == 3


def test_unknown_ops_are_named_below_the_table(capsys):
    assert "no rule for linalg_inv (called once)" in well(capsys, "--model", "nets:inverse")


def test_layers_that_are_alike_share_a_row_unless_all_are_asked_for(capsys):
    out = well(capsys, "--model", "nets:long")
    assert "blocks.0…29.weight ×30" in out
    assert "31 matrices" in out
    assert "--all" in out
    each = well(capsys, "--model", "nets:long", "--all")
    assert "×30" not in each
    assert all(f"blocks.{number}.weight" in each for number in range(30))
    total = ["31", "matrices", "120.5", "KiB", "120.5", "KiB"]
    assert total in [line.split() for line in out.splitlines()]
    assert total in [line.split() for line in each.splitlines()]


def test_frozen_weights_are_left_out(capsys):
    out = well(capsys, "--model", "nets:frozen")
    assert "1 matrix" in out
    assert "2 frozen matrices" in out
    assert json.loads(well(capsys, "--model", "nets:frozen", "--json"))["bounds"]["blocks.0.weight"]["bytes_dense"] == 0


def test_a_network_without_matrices_is_no_error(capsys):
    assert "no matrix" in well(capsys, "--model", "nets:vectors", "--picture", "none.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nets"], ["allowed are mlp, elman,", "or package.module:function"]),
        (["--model", "nets:"], ["package.module:function"]),
        (["--model", "my nets:make"], ["package.module:function"]),
        (["--model", "nest:make"], ["no module 'nest'"]),
        (["--model", "nets:mkae"], ["no function 'mkae'", "did you mean 'make'"]),
        (["--model", "nets:INPUTS"], ["no function 'INPUTS'"]),
        (["--model", "broken:make"], ["importing broken raised AttributeError", "nowhere"]),
        (["--model", "nets:fails"], ["fails() raised RuntimeError: out of luck (line", "of nets.py)"]),
        (["--model", "nets:leaves"], ["raised SystemExit: 3"]),
        (["--model", "nets:nothing"], ["gave NoneType without 'model'", "dict or an object"]),
        (["--model", "nets:misspelt"], ["unknown key 'target'", "did you mean 'targets'"]),
        (["--model", "nets:bare_tensor"], ["args of type Tensor", "(x,)"]),
        (["--model", "nets:bare_number"], ["input_rank", "1 or more"]),
        (["--model", "nets:untraceable"], ["torch.export cannot trace Branch"]),
        (["--model", "nets:make", "--workers", "0"], ["--workers: found 0", "1 or more"]),
        (["--model", "nets:make", "--data", "digits"], ["make() raised TypeError", "'Signature' object"]),
        (["--model", "nets:make", "--set", "model.width=3"], ["--set", "leave it out"]),
        (["--workers", "0"], ["cluster.workers", "greater than or equal to 1"]),
        ([str(QUICKSTART), "--model", "mlp"], ["--set model=mlp"]),
        (["nowhere.yaml"], ["nowhere.yaml: cannot be read"]),
        (["--picture", "picture.bmp"], ["'.bmp'", ".png, .svg, .pdf"]),
        (["--picture", "nets.py/picture.png"], ["cannot be written"]),
        (["--explain", "weight"], ["found in 4 parameters", "0.weight, 2.weight"]),
        (["--explain", "2.wieght"], ["near are 2.weight"]),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, words):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    (told,) = [line for line in err.splitlines() if line != "noise of the user's own"]
    assert told.startswith("gradrank: ")
    assert all(word in told for word in words), told


def test_help_tells_what_a_function_gives(capsys):
    out = well(capsys, "--help")
    for field in ("model", "args", "kwargs", "loss", "targets", "input_rank", "distinct_tokens", "training"):
        assert field in out


def test_the_example_of_the_documentation_prints_what_it_says(capsys):
    text = (QUICKSTART.parents[1] / "docs" / "bounds.md").read_text()
    (example,) = re.findall(r"```python\n# nets.py\n(.*?)```", text, flags=re.DOTALL)
    Path("example.py").write_text(example)
    printed = [line.rstrip() for line in well(capsys, "--model", "example:autoencoder", "--workers", "2").splitlines()]
    printed += well(capsys, "--set", "model.bottleneck=8", "--explain", "6.").splitlines()
    shown = "".join(re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    shown = [line for line in shown if "$" not in line and line.strip() != "…"]
    assert len(shown) == 10
    assert [line for line in shown if line not in printed] == []


# --- rows ---------------------------------------------------------------------------------------------------------


def bound(rank: int = 8, reason: str = "input: the input (8 wide)", **changes) -> RankBound:
    return RankBound(rank, (32, 16), reason, changes.pop("linear_rank", rank), **changes)


def labels(bounds: dict[str, RankBound]) -> list[str]:
    padded = {**{f"{'abcdefghijklmnopqrstuvwxyz'[i]}.weight": bound(rank=1) for i in range(LONG)}, **bounds}
    rows = rows_of(padded, dict.fromkeys(padded, 4))
    assert sum(len(row.names) for row in rows) == len(padded)
    assert sum(row.dense for row in rows) == len(padded) * 32 * 16 * 4
    return [row.label for row in rows[LONG:]]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({f"l.{i}.w": bound() for i in range(5)}, ["l.0…4.w ×5"]),
        ({f"l.{i}.w": bound() for i in range(0, 9, 2)}, ["l.0,2…8.w ×5"]),
        ({f"l.{i}.w": bound(rank=7 if i == 2 else 8) for i in range(5)}, ["l.0…1,3…4.w ×4", "l.2.w"]),
        ({f"l.{i}.e.{j}.w": bound() for i in range(3) for j in range(4)}, ["l.0…2.e.0…3.w ×12"]),
        ({f"l.{i}.e.{j}.w": bound() for i in range(2) for j in range(i + 1)}, ["l.0.e.0.w", "l.1.e.0…1.w ×2"]),
        ({f"l.{i}.w": bound(reason=f"adjoint: the input of l.{i}.w (8 wide)") for i in range(3)}, ["l.0…2.w ×3"]),
        ({f"l.{i}.w": bound(reason=f"input: {8 + i} rows") for i in range(2)}, ["l.0.w", "l.1.w"]),
        ({f"l.{i}.w": bound(linear_rank=4 + i) for i in range(2)}, ["l.0.w", "l.1.w"]),
    ],
)
def test_rows_are_joined_where_only_layer_numbers_differ(bounds, expected):
    assert labels(bounds) == expected


def test_a_shared_row_tells_the_range_of_its_losses():
    losses = {f"l.{i}.w": bound(rank=16, linear_rank=4, certified_loss=0.1 * (i + 1)) for i in range(LONG + 1)}
    (row,) = rows_of(losses, dict.fromkeys(losses, 4))
    assert row.losses == pytest.approx((0.1, 0.1 * (LONG + 1)))


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**42, "4096.0 GiB")]
)
def test_sizes_are_told_in_binary_units(size, words):
    assert human(size) == words


def test_the_console_shows_names_as_they_are(capsys):
    Path("names.py").write_text("from nets import make as seven")
    assert "names:seven: 1 worker" in well(capsys, "--model", "names:seven")  # and not the emoji of that name


def test_small_shares_keep_a_digit():
    assert [percent(share) for share in (0, 0.002, 0.25, 1)] == ["0%", "0.2%", "25%", "100%"]


# --- paths --------------------------------------------------------------------------------------------------------


def test_a_path_names_every_kind_of_step():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
    )
    bounds = rank_bounds(network, (torch.zeros(2, 4, 6, 6),), loss=lambda output: (3 * output).sum())
    paths = {name: "\n".join(entry.path()) for name, entry in bounds.items()}
    assert "put at entries 0,9 of 18" in paths["0.weight"]
    assert "0.weight at offset 1, group 0" in paths["1.weight"]
    assert "side by side at 16 positions ≤ 64 → 3.weightᵀ ≤ 8" in paths["3.weight"]
    assert "→ less its mean ≤ 7 → scaled by 4.weight ≤ 7" in paths["5.weight"]
    assert "repeated 8 times ≤ 1 → 5.weight ≤ 1" in paths["3.weight"]
    assert re.search(r"^  … \d+ more$", paths["3.weight"], re.MULTILINE)
    assert "p_model" not in "".join(paths.values())  # no names of the graph's own


def test_long_paths_are_cut_in_their_middle():
    network = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(30)))
    bounds = rank_bounds(network, (torch.zeros(16, 8),), loss=lambda output: output.square().sum())
    (chain,) = [line for line in bounds["29.weight"].path() if line.endswith("28.weightᵀ ≤ 8")]
    assert chain.startswith("  anything 8 wide ≤ 8 → 0.weightᵀ ≤ 8")
    assert "→ … 20 more steps … →" in chain


def test_a_path_without_spaces_is_the_reason_alone():
    assert bound(reason="the loss does not depend on it").path() == ["bound 8 of 16: the loss does not depend on it"]
