"""DDP's join with uneven inputs: a worker that has ended still pays what it owes, and poisons nothing."""

import pytest
from cases import CASES
from contract_nets import Batches, build, gradients
from delivery import Setting, add, bounds, deviation, mean_residuals, wrap, zeros
from torch.distributed.algorithms.join import Join


def uneven(rank, case, steps, traced):
    """Errors on the worker that goes on longest, what is owed, and the weights when all have ended."""
    results = []
    for setting in (Setting(bounds=traced), Setting(bucket_mb=1e-3, bounds=traced)):
        batches, twin = Batches(case.network, 2), build(case.network)
        ddp, state = wrap(case, batches, setting)
        received, expected, errors = zeros(twin), zeros(twin), []
        with Join([ddp]):
            for step in range(steps[rank]):
                ddp.zero_grad()
                batches.loss(ddp, rank, step).backward()
                twin.zero_grad()
                for worker in range(2):
                    if step < steps[worker]:
                        (batches.loss(twin, worker, step) / 2).backward()
                found, true = gradients(ddp), gradients(twin)
                errors.append(deviation(found, true))
                add(received, found)
                add(expected, true)
        add(received, {name: rest.view_as(received[name]) for name, rest in mean_residuals(state).items()})
        memories = state.state_dict()["memories"]
        clean = all(bool(tensor.isfinite().all()) for memory in memories.values() for tensor in memory.values())
        results.append((errors, deviation(received, expected), clean, state.step, state.nonfinite_steps))
    return results


@pytest.mark.parametrize("steps", [(6, 2), (0, 3)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_workers_that_end_early_poison_nothing(workers, case, steps):
    longest = steps.index(max(steps))
    seen = workers(2)(uneven, case, steps, bounds(case.network, 2))
    for errors, owed, clean, done, nonfinite in seen[longest]:
        assert clean
        assert done == max(steps)
        assert nonfinite == 0
        assert owed <= case.owes
        assert case.loss is None or max(errors) <= case.loss
    for first, second in zip(*seen, strict=True):
        assert first[2:] == second[2:]
