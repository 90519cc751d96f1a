"""Saved states, taken up with another number of workers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def reshard(states: Sequence[Mapping[str, Any]], world_size: int) -> list[dict[str, Any]]:
    """Turn the states that all workers of one run saved into as many as another number of workers need.

    Each new worker gets the mean of all residuals, so their mean, which is what error feedback still owes,
    is kept. All else is alike on all workers.

    Args:
        states: one `state_dict()` of each worker, of the same step.
        world_size: workers from now on.

    Returns:
        One state for each new worker, for `load_state_dict`.

    Raises:
        ValueError: no states, or states of different steps, seeds or networks; or no workers.
    """
    if not states:
        raise ValueError("reshard got no states; give the state_dict() of every worker")
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; it must be 1 or more")
    first = states[0]
    for rank, state in enumerate(states):
        for key in ("step", "seed", "methods"):
            if state[key] != first[key]:
                raise ValueError(
                    f"the states are not of one run: {key} is {first[key]} on worker 0 and {state[key]} on worker "
                    f"{rank}; give the states that all workers saved at the same step"
                )
    memories = {name: _merged([state["memories"][name] for state in states]) for name in first["memories"]}
    return [
        {**first, "memories": {name: {k: t.clone() for k, t in memory.items()} for name, memory in memories.items()}}
        for _ in range(world_size)
    ]


def _merged(memories: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    merged = dict(memories[0])
    residuals = [memory["residual"] for memory in memories if "residual" in memory]
    if residuals:  # workers may differ in whether they keep one; those without owe nothing
        merged["residual"] = torch.stack([residual.to(residuals[0].device) for residual in residuals]).sum(0)
        merged["residual"] /= len(memories)
    return merged
