"""The contract of the two-level exchange, at two nodes of two workers."""

import pytest
import torch.distributed as dist
from cases import CASES, cases
from contract_nets import Batches, build
from delivery import Setting, bounds, equal, measure, node_group
from torch.nn.parallel import DistributedDataParallel

import compress

SETTINGS = {
    "one bucket": Setting(nodes=2),
    "many buckets": Setting(nodes=2, bucket_mb=1e-3, eager=True),
    "accumulated": Setting(nodes=2, accumulate=2, events=("plain", "plain", "empty", "plain")),
}


@pytest.mark.parametrize("case", cases(two_level=True), ids=str)
def test_two_levels_deliver_what_one_does(workers, case):
    run = measure(workers, case, 4, SETTINGS)
    for name, deliveries in run.items():
        for rank, delivery in enumerate(deliveries):
            assert delivery.methods >= set(case.methods)
            assert case.loss is None or max(delivery.errors) <= case.loss, name
            assert delivery.owed <= case.owes, name
            assert bool(delivery.residuals) == case.keeps
            assert all(map(equal, delivery.delivered, deliveries[0].delivered)), name
            # Only the first worker of a node sends to other nodes.
            assert delivery.sent == (delivery.planned if rank % 2 == 0 else 0)


def nodes_of(rank, ranks_by_node):
    groups = [dist.new_group(ranks) for ranks in ranks_by_node]
    mine = next(group for group, ranks in zip(groups, ranks_by_node, strict=True) if rank in ranks)
    try:
        compress.register(DistributedDataParallel(build("linear")), compressor="dense", local_group=mine)
    except ValueError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("ranks_by_node", "answer"),
    [
        ([[0, 1], [2, 3]], "accepted"),
        ([[0, 1, 2, 3]], "accepted"),
        ([[0, 2], [1, 3]], "every node must have as many workers, with consecutive ranks"),
        ([[0, 1, 2], [3]], "every node must have as many workers, with consecutive ranks"),
    ],
    ids=str,
)
def test_nodes_must_be_alike_and_in_order(workers, ranks_by_node, answer):
    assert all(answer in said for said in workers(4)(nodes_of, ranks_by_node))


def two_level(rank, case, traced):
    group = node_group(2)
    try:
        compress.register(
            DistributedDataParallel(build(case.network)), **{"bounds": traced, **case.register}, local_group=group
        )
    except ValueError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("case", cases(two_level=False), ids=str)
def test_methods_that_cannot_serve_two_levels_say_so(workers, case):
    for said in workers(4)(two_level, case, bounds(case.network, 4)):
        assert "leave out local_group" in said


def nan_inside(rank):
    batches = Batches("linear", 4)
    model = build("linear")
    ddp = DistributedDataParallel(model)
    state = compress.register(
        ddp, compressor="powersgd", policy={"kind": "fixed", "rank": 2}, local_group=node_group(2)
    )
    batches.loss(ddp, rank, 0).backward()
    before = state.state_dict()["memories"]["0.weight"]
    if rank == 3:
        model[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    batches.loss(ddp, rank, 1).backward()
    lost = not bool(model[0].weight.grad.isfinite().any())
    return lost, state.finite, state.nonfinite_steps, equal(before, state.state_dict()["memories"]["0.weight"])


def test_a_nan_of_any_worker_reaches_all_nodes(workers):
    assert workers(4)(nan_inside) == [(True, False, 1, True)] * 4


def test_the_registry_knows_who_serves_two_levels():
    assert {case.two_level for case in CASES} == {True, False}
