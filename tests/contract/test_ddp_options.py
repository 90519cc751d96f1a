"""The contract under what DDP and torch do to networks: options of DDP, compiled and checkpointed modules."""

from dataclasses import replace

import pytest
from cases import CASES
from delivery import Setting, equal, measure

STEPS = ("plain", "plain", "empty", "plain")
SETTINGS = {
    "static graph": Setting(ddp={"static_graph": True}),
    "gradients are views": Setting(bucket_mb=1e-3, ddp={"gradient_as_bucket_view": True}, eager=True),
    "gradients are views, accumulated": Setting(ddp={"gradient_as_bucket_view": True}, accumulate=2),
    "looking for unused": Setting(bucket_mb=1e-3, ddp={"find_unused_parameters": True}),
    "compiled": Setting(wrap="compiled"),
    "checkpointed": Setting(bucket_mb=1e-3, wrap="checkpointed"),
    "checkpointed, reentrant": Setting(wrap="reentrant", ddp={"static_graph": True}),
}
UNUSED = {
    "parts unused": Setting(ddp={"find_unused_parameters": True}),
    "parts unused, many buckets": Setting(bucket_mb=1e-3, ddp={"find_unused_parameters": True}, eager=True),
}


def check(run, case):
    for name, deliveries in run.items():
        for delivery in deliveries:
            assert delivery.owed <= case.owes, name
            assert case.loss is None or max(delivery.errors) <= case.loss, name
            assert all(map(equal, delivery.delivered, deliveries[0].delivered)), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_options_of_ddp_and_torch_make_no_difference(workers, case):
    run = measure(workers, case, 2, {name: replace(setting, events=STEPS) for name, setting in SETTINGS.items()})
    check(run, case)


@pytest.mark.parametrize("case", [case for case in CASES if case.network == "linear"], ids=str)
def test_parameters_that_some_workers_or_none_use(workers, case):
    events = STEPS + STEPS[:2]
    run = measure(
        workers,
        replace(case, network="branch"),
        2,
        {name: replace(setting, events=events) for name, setting in UNUSED.items()},
    )
    check(run, case)
