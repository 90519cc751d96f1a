"""The docs' page on adding a policy, followed from outside the repository."""

import sys

import pytest
import torch
from pages import followed

from launch.errors import UserError
from launch.planning import plan_cell
from launch.study import read_study
from launch.tracking import cell_params
from launch.train import train_cell


@pytest.fixture
def outside(tmp_path):
    """A folder that holds the files of the docs' page, and is the current one."""
    with followed("policies.md", tmp_path, ["energy.py", "study.yaml"]) as folder:
        yield folder


def look_in(rank, folder):
    sys.path.insert(0, folder)


def train(rank, planned):
    return train_cell(planned, torch.device("cpu"), lambda step, metrics: None)["metrics"]


def test_a_study_compares_the_policy_that_it_names_with_others(outside, workers):
    planned = [plan_cell(cell) for cell in read_study(outside / "study.yaml").cells]
    policies = ["ranks.energy:Energy share=0.9 start=2", "fixed rank=1", "bound"]
    assert [cell_params(cell)["policy"] for cell in planned] == policies
    assert planned[0].cell.config.values["policy"] == {"kind": "ranks.energy:Energy", "share": 0.9, "start": 2}
    assert set(planned[0].plan.decided.values()) == {2}
    workers(2)(look_in, str(outside))
    own, fixed, bound = (workers(2)(train, cell) for cell in planned)
    assert fixed[0]["summary/bytes_per_step"] < own[0]["summary/bytes_per_step"] < bound[0]["summary/bytes_per_step"]
    assert own[0]["summary/loss"] < own[0]["summary/initial_loss"]


def test_the_policy_of_the_docs_decides_anew_after_audits(outside):
    import compress

    cell = plan_cell(read_study(outside / "study.yaml").cells[0])
    plan = cell.plan
    name = plan.matrices[0].info.name
    seen = compress.Observation(0, 2, 3, 2.0, (1.6, 1.1, 0.4, 0.2), 2.0, (), 0.0)  # energies 2.56, 1.21, of 4
    again = plan.planner.plan({name: [seen]}, plan.decided)
    assert again.decided[name] == 2
    assert "90% of the energy at step 0" in again[name].reason


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("share=2", r"policy: .*'energy': share: .* less than or equal to 1 \(fields: kind, share, start\)"),
        ("shard=0.1", "shard: Extra inputs are not permitted"),
        ("kind=ranks.energy:Energies", "has no class 'Energies'; its classes are Energy; did you mean"),
        ("kind=ranks.energy:Decision", "ranks.energy:Decision is no policy; derive it from compress.Policy"),
        ("kind=ranks.energy:Policy", "abstract"),
        ("kind='ranks:'", "allowed is package.module:Class"),
        ("kind=tolerence", "tolerance"),
    ],
)
def test_mistakes_with_a_class_are_told(outside, override, told):
    start = ["sweep={}", "policy={kind: 'ranks.energy:Energy'}"]
    with pytest.raises(UserError, match=told):
        read_study(outside / "study.yaml", [*start, f"policy.{override}"])
