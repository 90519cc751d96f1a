"""The contract of states: saved and taken up bit for bit, also by another number of workers."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from cases import CASES, cases
from contract_nets import Batches, build, gradients, true_mean
from delivery import Setting, add, bounds, deviation, equal, mean_residuals, wrap, zeros

import compress

STEPS, STOP = 6, 3


def trained(rank, case, traced, stop):
    """Delivered gradients, with the state taken up by a fresh DDP object after `stop` steps."""
    batches, setting = Batches(case.network, 2), Setting(bucket_mb=1e-3, bounds=traced)
    ddp, state = wrap(case, batches, setting, seed=7)
    delivered = []
    for step in range(STEPS):
        if step == stop:
            saved = state.state_dict()
            ddp, state = wrap(case, batches, setting, seed=8)  # the seed comes with the state
            state.load_state_dict(saved)
            del saved
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        delivered.append(gradients(ddp))
    return delivered, state.step


def through_and_resumed(rank, case, traced):
    return trained(rank, case, traced, None), trained(rank, case, traced, STOP)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_saved_state_goes_on_bit_for_bit(workers, case):
    for (through, steps), (resumed, again) in workers(2)(through_and_resumed, case, bounds(case.network, 2)):
        # DDP's first buckets are others than its later ones, and so gradients lie elsewhere in memory.
        assert all(deviation(first, second) < 1e-14 for first, second in zip(through, resumed, strict=True))
        assert steps == again == STEPS


def saving(rank, case):
    """States after some steps on few workers, the sum of what was true, and of what was delivered."""
    batches = Batches(case.network, dist.get_world_size())
    twin = build(case.network)
    ddp, state = wrap(case, batches)
    received, expected = zeros(twin), zeros(twin)
    for step in range(STOP):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        add(received, gradients(ddp))
        add(expected, true_mean(twin, batches, [step]))
    return state.state_dict(), received, expected


def going_on(rank, case, states, received, expected):
    """What is owed after more steps, on another number of workers."""
    batches = Batches(case.network, dist.get_world_size())
    twin = build(case.network)
    ddp, state = wrap(case, batches)
    state.load_state_dict(states[rank])
    for step in range(STOP, STEPS):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        add(received, gradients(ddp))
        add(expected, true_mean(twin, batches, [step]))
    add(received, {name: rest.view_as(received[name]) for name, rest in mean_residuals(state).items()})
    return deviation(received, expected), gradients(ddp), state.step


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
@pytest.mark.parametrize("case", cases(keeps=True), ids=str)
def test_another_number_of_workers_goes_on_with_what_was_owed(workers, case, before, after):
    saved = workers(before)(saving, case)
    _, received, expected = saved[0]
    states = compress.reshard([state for state, _, _ in saved], after)
    assert len(states) == after
    seen = workers(after)(going_on, case, states, received, expected)
    for owed, delivered, step in seen:
        assert owed < 1e-12
        assert equal(delivered, seen[0][1])
        assert step == STEPS


def a_state(residual=None, **changes):
    memory = {} if residual is None else {"residual": torch.full((2, 3), float(residual)), "Q": torch.ones(1, 3)}
    state = {"step": 4, "seed": 0, "nonfinite_steps": 1, "methods": {"w": "powersgd"}, "memories": {"w": memory}}
    return {**state, **changes}


def test_resharding_keeps_the_mean_residual_and_shares_no_memory():
    states = [a_state(1.0), a_state(4.0), a_state()]  # a worker without a residual owes nothing
    fewer = compress.reshard(states, 2)
    for state in fewer:
        assert torch.equal(state["memories"]["w"]["residual"], torch.full((2, 3), 5 / 3))
        assert torch.equal(state["memories"]["w"]["Q"], torch.ones(1, 3))
    fewer[0]["memories"]["w"]["residual"].zero_()
    assert float(fewer[1]["memories"]["w"]["residual"].sum()) == pytest.approx(10)
    assert float(states[0]["memories"]["w"]["residual"].sum()) == 6


def test_resharding_finds_what_only_a_later_worker_keeps():
    state = compress.reshard([a_state(), a_state(6.0)], 1)[0]
    assert torch.equal(state["memories"]["w"]["residual"], torch.full((2, 3), 3.0))


@pytest.mark.parametrize(
    ("states", "world_size", "says"),
    [
        ([], 2, "give the state_dict"),
        ([a_state()], 0, "world_size is 0"),
        ([a_state(), a_state(step=5)], 2, "step is 4 on worker 0 and 5 on worker 1"),
        ([a_state(), a_state(seed=5)], 2, "seed is 0"),
        ([a_state(), a_state(methods={"v": "dad"})], 2, "methods is"),
    ],
)
def test_resharding_refuses_states_that_are_not_of_one_run(states, world_size, says):
    with pytest.raises(ValueError, match=says):
        compress.reshard(states, world_size)


def taking_up(rank, case, other):
    """What loading a state of another network says."""
    _, state = wrap(case, Batches(case.network, 1))
    _, of_another = wrap(other, Batches(other.network, 1))
    try:
        of_another.load_state_dict(state.state_dict())
    except ValueError as error:
        return str(error)
    return "accepted"


def test_a_state_of_another_network_is_refused(workers):
    below = next(iter(cases(keeps=True)))
    (said,) = workers(1)(taking_up, below, replace(below, network="convolutional"))
    assert "the state was saved with another network; only one of them has" in said


def bytes_of(rank, case, folder):
    """A state must go through torch.save without a process group in it, and load with weights alone."""
    batches = Batches(case.network, 2)
    ddp, state = wrap(case, batches)
    batches.loss(ddp, rank, 0).backward()
    saved = state.state_dict()
    torch.save(saved, f"{folder}/{rank}.pt")
    loaded = torch.load(f"{folder}/{rank}.pt", weights_only=True)
    return all(equal(memory, loaded["memories"][name]) for name, memory in saved["memories"].items())


@pytest.mark.parametrize("case", [case for case in CASES if case.network == "linear"], ids=str)
def test_states_can_be_written_to_files(workers, case, tmp_path):
    assert workers(2)(bytes_of, case, tmp_path) == [True, True]
