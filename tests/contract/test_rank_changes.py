"""Changes of rank and method in mid-training: error feedback goes on, and the warm start's best columns."""

import pytest
import torch
from contract_nets import Batches, build, gradients, true_mean
from delivery import add, bounds, deviation, equal, mean_residuals, zeros
from torch.nn.parallel import DistributedDataParallel

import compress


def plan_of(batches, spec, world_size, local_size=1):
    compressor, policy = spec
    model = build(batches.network)
    traced = None if isinstance(policy, dict) else bounds(batches.network, world_size)
    return compress.make_plan(model, compressor, policy, bounds=traced, world_size=world_size, local_size=local_size)


def fixed(rank):
    return "powersgd", {"kind": "fixed", "rank": rank}


def changing(rank, network, specs, plans):
    """Two steps under each plan: deviations from the truth, what is owed in the end, and what was delivered."""
    batches, twin = Batches(network, 2), build(network)
    ddp = DistributedDataParallel(build(network), bucket_cap_mb=1e-3)
    state = None
    received, expected, errors, delivered, kept = zeros(twin), zeros(twin), [], [], []
    for step, plan in enumerate(plan for plan in plans for _ in range(2)):
        if state is None:
            state = compress.register(ddp, plan)
        elif state.plan is not plan:
            state.change_plan(plan)
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        true = true_mean(twin, batches, [step])
        delivered.append(gradients(ddp))
        errors.append(deviation(delivered[-1], true))
        add(received, delivered[-1])
        add(expected, true)
        kept.append("residual" in state.state_dict()["memories"]["0.weight"])
    add(received, {name: rest.view_as(received[name]) for name, rest in mean_residuals(state).items()})
    return deviation(received, expected), errors, kept, delivered


CHANGES = {
    "ranks fall and rise": ([fixed(3), fixed(1), fixed(2), fixed(3)], "linear"),
    "to the bound and back": ([fixed(2), ("powersgd", "bound"), fixed(1)], "linear"),
    "to dense and back": ([fixed(2), ("dense", "none"), fixed(1)], "linear"),
    "to dAD, whose biases come along": ([fixed(2), ("dad", "none"), fixed(2)], "linear"),
    "kernels": ([fixed(2), fixed(1), ("powersgd", "bound"), fixed(3)], "convolutional"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_error_feedback_goes_on(workers, change):
    specs, network = CHANGES[change]
    plans = [plan_of(Batches(network, 2), spec, 2) for spec in specs]
    seen = workers(2)(changing, network, specs, plans)
    for owed, errors, kept, delivered in seen:
        assert owed < 1e-12
        assert all(map(equal, delivered, seen[0][3]))
        for index, (_, policy) in enumerate(specs):
            if not isinstance(policy, dict):  # lossless: in its first step it pays what was owed
                assert kept[2 * index : 2 * index + 2] == [False, False]
                assert errors[2 * index] > 1e-3
                assert errors[2 * index + 1] < 1e-11


def warm_starts(rank, first, second):
    """The warm start before and after a change of rank, with a gradient that is zero in the step between."""
    batches = Batches("linear", 2)
    plans = [plan_of(batches, fixed(asked), 2) for asked in (first, second)]
    ddp = DistributedDataParallel(build("linear"))
    state = compress.register(ddp, plans[0])
    for step in range(3):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
    before = state.state_dict()["memories"]["0.weight"]
    state.change_plan(plans[1])
    seen = []
    rounds = plans[1]["0.weight"].compressor.__class__

    def watched(self, matrix, original=rounds.rounds):
        generator = original(self, matrix)
        if matrix.info.name != "0.weight":
            return (yield from generator)
        M = matrix.gradient.clone() + matrix.memory["residual"]
        request = next(generator)
        seen.append((M, request.tensor.clone()))
        answer = yield request
        while True:
            try:
                answer = yield generator.send(answer)
            except StopIteration as done:
                return done.value

    rounds.rounds, original = watched, rounds.rounds
    try:
        ddp.zero_grad()
        batches.loss(ddp, rank, 3).backward()
    finally:
        rounds.rounds = original
    return before["Q"], *seen[0]


@pytest.mark.parametrize(("first", "second"), [(3, 2), (2, 3)])
def test_the_columns_that_carried_most_survive(workers, first, second):
    for Q, M, P in workers(2)(warm_starts, first, second):
        lengths = torch.linalg.vector_norm(Q, dim=1)
        best = lengths.argsort(descending=True)[: min(first, second)]
        best = best if second < first else best.sort().values
        assert P.shape == (second, len(M))
        unit = Q[best] / lengths[best, None]
        assert torch.allclose(P[: len(best)], unit @ M.mT, atol=1e-12)


def refused(rank, change):
    ddp = DistributedDataParallel(build("linear"))
    batches = Batches("linear", 2)
    state = compress.register(ddp, plan_of(batches, fixed(2), 2))
    said = []

    def attempt(plan):
        try:
            state.change_plan(plan)
        except (ValueError, RuntimeError) as error:
            said.append(str(error))

    if change == "network":
        attempt(compress.make_plan(build("convolutional"), "dense", world_size=2))
    elif change == "world size":
        attempt(compress.make_plan(build("linear"), "dense", world_size=3))
    else:  # called while gradients arrive
        original = state.on_bucket

        def on_bucket(bucket):
            future = original(bucket)
            if not bucket.is_last():
                attempt(state.plan)
            return future

        state.on_bucket = on_bucket
        many = DistributedDataParallel(ddp.module, bucket_cap_mb=1e-3)
        many.register_comm_hook(state, lambda state, bucket: state.on_bucket(bucket))
        for step in range(2):
            batches.loss(many, rank, step).backward()
    return said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("network", "the plan was made for another network"),
        ("world size", "the plan was made for world_size=3"),
        ("in a step", "a step is under way"),
    ],
)
def test_changes_that_cannot_be_carried_out_are_refused(workers, change, says):
    for said in workers(2)(refused, change):
        assert said
        assert all(says in message for message in said)
