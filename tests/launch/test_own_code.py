"""The docs' page on networks and data of one's own, followed from outside the repository."""

import json
import os
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient
from pages import ROOT, followed

from launch.cli import main
from launch.errors import UserError
from launch.planning import plan_cell
from launch.study import read_study, single_cell
from models import OwnModel


@pytest.fixture
def outside(tmp_path):
    """A folder that holds the files of the docs' page, and is the current one."""
    with followed("models.md", tmp_path, ["data.py", "nets.py", "study.yaml"]) as folder:
        yield folder


def test_the_study_of_the_docs_trains_on_two_workers(outside):
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", "study.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=outside,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{outside / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wine")
    (cell,) = client.search_runs([experiment.experiment_id], "tags.`gradrank.kind` = 'cell'")
    assert cell.data.metrics["summary/accuracy"] > 0.9
    assert cell.data.metrics["summary/bound_violations"] == 0
    assert cell.data.metrics["summary/information_loss"] < 1e-5
    assert cell.data.params["model"] == "own.nets:two_towers"
    assert cell.data.params["bottleneck"] == "2.0"


def test_its_bottleneck_bounds_the_gradients(outside):
    (cell,) = read_study(outside / "study.yaml").cells
    bounds = plan_cell(cell).bounds
    # Three classes leave rank two; behind a bottleneck of two, one more direction comes of its bias.
    assert {name: bound.rank for name, bound in bounds.items()} == {
        f"towers.{tower}.{layer}.weight": 2 for tower in (0, 1) for layer in (0, 1, 2)
    }


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.bottelneck=3", "unknown key 'bottelneck'; the settings of own.nets:two_towers are width, bottleneck"),
        ("data.kind=own.data:beer", "own.data has no function 'beer'; its functions are .*wine"),
        ("model.kind=own.cheese:make", "found no module 'own.cheese'"),
        ("model.width=two", r"two_towers\(\) raised TypeError.*line \d+ of nets.py"),
        ("data.kind=own.nets:Sum", r"Sum\(\) raised TypeError.*line \d+ of nets.py"),
        ("model.kind=two_towers", "allowed model kinds are .*package.module:function"),
    ],
)
def test_mistakes_are_told_before_anything_starts(outside, setting, told):
    with pytest.raises(UserError, match=told):
        [plan_cell(cell) for cell in read_study(outside / "study.yaml", [setting]).cells]


def test_gradrank_bound_takes_both(outside, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "bound",
                "--model",
                "own.nets:two_towers",
                "--data",
                "own.data:wine",
                "--set",
                "model.bottleneck=1",
                "--json",
            ]
        )
    assert ended.value.code == 0
    (network,) = [json.loads(capsys.readouterr().out)]
    assert {bound["rank"] for bound in network["bounds"].values()} == {1, 2}


def test_settings_may_be_lists(outside):
    (outside / "own" / "listed.py").write_text(
        "from torch import nn\ndef make(signature, widths): "
        "return nn.Sequential(nn.Linear(signature.features, widths[0]), nn.Linear(widths[0], signature.outputs))\n"
    )
    values = {"model": {"kind": "own.listed:make", "widths": [5]}, "data": "own.data:wine", "compressor": "dense"}
    shapes = {tuple(bound.shape) for bound in plan_cell(single_cell(values)).bounds.values()}
    assert shapes == {(5, 13), (3, 5)}
    values["model"]["widths"] = [4]
    assert {tuple(bound.shape) for bound in plan_cell(single_cell(values)).bounds.values()} == {(4, 13), (3, 4)}


def test_defaults_of_the_function_are_knobs_as_settings_are(outside):
    (outside / "own" / "knobs.py").write_text(
        "def make(signature, length=3, bottleneck=4, sequence_length=8, alpha=0.5): pass\n"
    )
    model = OwnModel(kind="own.knobs:make")
    assert model.length == 8
    assert model.knobs == {"bottleneck": 4, "sequence_length": 8, "alpha": 0.5}
    changed = OwnModel(kind="own.knobs:make", length=5, sequence_length=None, alpha=0, bottleneck=None)
    assert changed.length is None
    assert changed.knobs == {"bottleneck": 0, "sequence_length": 1, "alpha": 0}
    assert OwnModel(kind="own.nets:two_towers").knobs == {"bottleneck": 4, "sequence_length": 1, "alpha": 1}


def test_a_state_that_is_made_without_a_device_will_do(outside):
    (outside / "own" / "carrying.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Carrying(nn.Linear):\n"
        "    def initial_state(self, rows):\n"
        "        return (torch.zeros(rows, self.out_features),)\n"
        "    def forward(self, series, *state):\n"
        "        output = super().forward(series) + (state[0][:, None] if state else 0)\n"
        "        return (output, output[:, -1]) if state else output\n"
        "def make(signature, sequence_length=4):\n"
        "    return Carrying(signature.features, signature.outputs)\n"
    )
    values = {"model": "own.carrying:make", "data": {"kind": "sinusoids", "points": 8}, "compressor": "dense"}
    assert plan_cell(single_cell(values)).bounds["weight"].shape == (16, 16)


DATA = """\
import torch
from models import Classification, Dataset, Signature, TensorSamples, TokenPrediction, hold_out

class Unmeasured(Classification):
    metric = None

def make(fold, classes=(0, 1), dtype="int64", inputs="float32", shape=(5,), task="Classification", form="features"):
    low, high = classes
    measured = torch.ones(20, 5).to(getattr(torch, inputs))
    labels = torch.randint(low, high + 1, (20,)).to(getattr(torch, dtype))
    labels[::5], labels[1::5], labels[2::5] = low, high, low
    train, test = hold_out(TensorSamples(measured, labels), fold)
    signature = Signature(form, tuple(shape), 2) if form else None
    tasks = {"Classification": Classification, "Unmeasured": Unmeasured, "None": lambda: None}
    return Dataset("own", "here", "0", tasks[task](), signature, train, test)

def words(fold, length):
    ids = torch.arange(60).view(10, 6)
    train, test = hold_out(TensorSamples(ids[:, :-1], ids[:, 1:]), fold)
    return Dataset("own", "here", "0", TokenPrediction(), Signature("tokens", (5,), 9, True, 9), train, test)
"""


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"classes": [0, 2]}, r"data own.broken:make gave training classes 0 to 2; 0 to 1 are expected"),
        ({"classes": [-1, 1]}, "classes -1 to 1; 0 to 1"),
        ({"dtype": "int32"}, "classes of torch.int32; torch.int64"),
        ({"inputs": "int64"}, "inputs of torch.int64; floating-point"),
        ({"shape": [6]}, r"samples of shape \(5,\); its signature says \(6,\)"),
        ({"task": "None"}, "task of type NoneType; a models.Task"),
        ({"task": "Unmeasured"}, "the task Unmeasured without metric"),
        ({"form": "feature"}, "signature.kind 'feature'; allowed are .*; did you mean 'features'"),
        ({"form": None}, "signature of type NoneType; a models.Signature"),
        ({"kind": "own.broken:words"}, "training tokens .*; whole numbers from 0 to 8"),
    ],
)
def test_data_that_contradict_themselves_are_refused(outside, settings, told):
    (outside / "own" / "broken.py").write_text(DATA)
    model = {"kind": "elman", "sequence_length": 5} if "kind" in settings else "mlp"
    data = {"kind": "own.broken:make"} | settings
    values = {"model": model, "data": data, "compressor": "dense", "train": {"batch_size": 4}}
    with pytest.raises(UserError, match=told):
        plan_cell(single_cell(values))


NETS = """\
from torch import nn

def narrow(signature):
    return nn.Linear(signature.features + 1, signature.outputs)

def frozen(signature):
    return nn.Linear(signature.features, signature.outputs).requires_grad_(False)

def knobs(signature, bottleneck=3, sequence_length=None, alpha=1):
    return nn.Linear(signature.features, signature.outputs)

class Stateless(nn.Linear):
    def __init__(self, signature, sequence_length=None):
        super().__init__(signature.features, signature.outputs)

    def initial_state(self, rows):
        return (self.weight.new_zeros(rows, 1),)

    def forward(self, series, *state):
        return super().forward(series)
"""


def test_what_tracing_prints_stays_off_the_terminal(outside):
    (outside / "own" / "odd.py").write_text(NETS)
    done = subprocess.run(
        [sys.executable, "-m", "launch", "bound", "--model", "own.odd:narrow", "--data", "digits"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gradrank: own.odd:narrow: torch.export cannot trace Linear")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "own.odd:frozen"}, "trains no parameter"),
        ({"kind": "own.odd:knobs", "bottleneck": [3]}, r"bottleneck is \[3\]; a number is expected"),
        ({"kind": "own.odd:knobs", "sequence_length": "8"}, "sequence_length is '8'; a whole number"),
        ({"kind": "own.odd:Stateless", "sequence_length": 4}, "Stateless gave no tuple"),
    ],
)
def test_own_networks_that_cannot_serve_are_refused(outside, model, told):
    (outside / "own" / "odd.py").write_text(NETS)
    data = {"kind": "sinusoids", "points": 8}
    with pytest.raises(UserError, match=told):
        plan_cell(single_cell({"model": model, "data": data, "compressor": "dense"}))


def test_knobs_are_those_of_the_function_where_the_study_has_none(outside):
    (outside / "own" / "odd.py").write_text(NETS)
    cell = single_cell({"model": "own.odd:knobs", "data": "digits", "compressor": "dense"})
    assert cell.config.model.knobs == {"bottleneck": 3, "sequence_length": 1, "alpha": 1}
