"""`auto`: every method that loses nothing, of which each matrix takes the cheapest."""

from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from compress.compressors import DAD, Compressor, PowerSGD, RankDAD, Subspace
from compress.policies import BoundPolicy, NonePolicy, Policy
from compress.spec import Spec, parse


class Auto(Spec):
    """A compressor's place in a study or a call, from which the planner makes candidates."""

    kind: Literal["auto"] = "auto"


def is_auto(given: object) -> TypeGuard[str | Mapping[str, Any] | Auto]:
    """Whether a compressor, or a list of one, is `auto`.

    Raises:
        ValueError: it has fields, or others beside it.
    """
    listed = [given] if isinstance(given, (str, Mapping, Spec)) or not isinstance(given, (list, tuple)) else given
    named = [item for item in listed if _kind(item) == "auto"]
    if named and len(listed) > 1:
        raise ValueError("compressor 'auto' has candidates of its own; give it alone, or name all candidates")
    for item in named:
        parse(item, {"auto": Auto}, Auto, "compressor")
    return bool(named)


def expand(policy: Policy, *, bounded: bool, local_size: int) -> tuple[list[Compressor], Policy]:
    """The candidates that `auto` stands for, and the policy that sets their ranks.

    Bounds serve as ranks where the policy sets none. Methods that cannot serve here are left out: those that need a
    rank where nothing gives one, and those that send each worker's own rows where nodes average them away.
    """
    if isinstance(policy, NonePolicy) and bounded:
        policy = BoundPolicy()
    methods: list[Compressor] = [PowerSGD(), Subspace(), DAD(), RankDAD()]
    ranked = not isinstance(policy, NonePolicy)
    return [
        method for method in methods if (ranked or not method.ranked) and (local_size == 1 or not method.captures)
    ], policy


def _kind(item: object) -> object:
    if isinstance(item, Mapping):
        return item.get("kind")
    return item.kind if isinstance(item, Spec) else item
