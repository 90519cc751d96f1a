"""The methods that a plan chooses from: those that a study or a call names, or all that `auto` stands for."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

from compress.compressors import DAD, Compressor, PowerSGD, RankDAD, Subspace, make_compressor
from compress.policies import BoundPolicy, FixedPolicy, NonePolicy, Policy
from compress.spec import Spec, parse


class Auto(Spec):
    """A compressor's place in a study or a call, from which the planner makes candidates."""

    kind: Literal["auto"] = "auto"


CompressorSpec = str | Mapping[str, Any] | Compressor | Auto


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


def read_candidates(compressor: CompressorSpec | Sequence[CompressorSpec]) -> list[Compressor]:
    """A compressor, or a list of them, as objects.

    Raises:
        ValueError: an unknown name or field, or an empty list.
    """
    given = [compressor] if isinstance(compressor, (str, Mapping, Spec)) else compressor
    candidates = [make_compressor(item) for item in given if not isinstance(item, Auto)]
    if not candidates:
        raise ValueError("compressor is an empty list; give one candidate or more")
    return candidates


def check_candidates(candidates: Sequence[Compressor], policy: Policy, local_size: int) -> None:
    """Refuse what cannot serve with each other, with the policy, or on two levels.

    Raises:
        ValueError: naming the method, and what to take in its place.
    """
    capturing = [candidate.kind for candidate in candidates if candidate.captures]
    if local_size > 1 and capturing:
        raise ValueError(
            f"compressor {capturing[0]!r} sends each worker's own rows, and local_group averages them away before; "
            "leave out local_group, or take 'powersgd' or 'subspace'"
        )
    ranked = [candidate.kind for candidate in candidates if candidate.ranked]
    if ranked and isinstance(policy, NonePolicy):
        raise ValueError(
            f"compressor {ranked[0]!r} needs a rank; give policy 'bound' or {{'kind': 'fixed', 'rank': 4}}"
        )
    for candidate in candidates:
        if candidate.whole_buckets:
            _check_alone(candidate, candidates, policy, local_size)


def _check_alone(method: Compressor, candidates: Sequence[Compressor], policy: Policy, local_size: int) -> None:
    """Refuse what a method that takes whole buckets cannot be combined with."""
    others = sorted({candidate.kind for candidate in candidates if candidate is not method})
    if len(candidates) > 1:
        raise ValueError(
            f"compressor {method.kind!r} takes whole buckets, so that no other can serve beside it, and the candidates "
            f"are {', '.join([method.kind, *others])}; give it alone"
        )
    if not isinstance(policy, FixedPolicy):
        raise ValueError(
            f"compressor {method.kind!r} has one rank for all matrices, which policy {policy.kind!r} does not give; "
            "take {'kind': 'fixed', 'rank': 4}"
        )
    if local_size > 1:
        raise ValueError(f"compressor {method.kind!r} knows no nodes; leave out local_group, or take 'powersgd'")


def _kind(item: object) -> object:
    if isinstance(item, Mapping):
        return item.get("kind")
    return item.kind if isinstance(item, Spec) else item
