"""What `gradrank plan` is asked: plans of a network, side by side, and what they cost on links between workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from compress import Cost, Network, Plan, Rates, make_plan, predict
from compress.cost import break_even_bandwidth, break_even_workers
from launch.bound import BoundedNetwork
from launch.errors import UserError

METHODS = ("dense", "powersgd", "subspace", "dad", "rank_dad")
"""Shown beside the compressor that is asked for."""

GATHERING, REDUCING = ("dad", "rank_dad"), ("dense", "powersgd", "subspace")


@dataclass(frozen=True)
class Question:
    """What the options say.

    Attributes:
        compressor: to plan with: a name, a mapping or a list.
        policy: of its ranks, and of the methods' beside it; `none` takes the bounds.
        network: links; None to go by bytes.
        local_size: workers of a node.
        rates: of the workers' machines.
    """

    compressor: Any = "auto"
    policy: Any = "none"
    network: Network | None = None
    local_size: int = 1
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True)
class Answer:
    """Plans of one network.

    Attributes:
        network: with its bounds.
        question: that it answers.
        plan: what was asked for.
        beside: by name, the plan of each method alone.
        refused: by name, why a method has no plan.
    """

    network: BoundedNetwork
    question: Question
    plan: Plan
    beside: Mapping[str, Plan]
    refused: Mapping[str, str]

    @property
    def asked(self) -> str:
        """The compressor that was asked for, in a word."""
        given = self.question.compressor
        named = given if isinstance(given, list) else [given]
        return "+".join(str(one.get("kind")) if isinstance(one, Mapping) else str(one) for one in named)

    @property
    def plans(self) -> dict[str, Plan]:
        """All plans, what was asked for last."""
        return {**{name: plan for name, plan in self.beside.items() if name != self.asked}, self.asked: self.plan}

    def cost(self, plan: Plan) -> Cost | None:
        """Its step on the links; None where these are not known."""
        links = self.question.network
        return None if links is None else predict(plan, links, self.question.rates)

    def fastest_below(self, plan: Plan) -> float | None:
        """Bits per second below which a plan is faster than dense; None where nothing is known of links."""
        links = self.question.network
        if links is None:
            return None
        return break_even_bandwidth(plan, plan.dense, links, self.question.rates)

    def loses_from(self) -> dict[tuple[str, str], int | None]:
        """For each method that gathers, and the best that reduces: workers from which on the second costs less."""
        links, rates = self.question.network, self.question.rates

        def cost(plan: Plan) -> float:
            return plan.wire_bytes if links is None else predict(plan, links, rates).seconds

        gathering = [name for name in GATHERING if name in self.beside and _compresses(self.beside[name])]
        best = min((name for name in REDUCING if name in self.beside), key=lambda name: cost(self.beside[name]))
        return {(name, best): break_even_workers(self.beside[name], self.beside[best], cost) for name in gathering}


def answer(network: BoundedNetwork, question: Question) -> Answer:
    """Plan a network as asked, and by each method alone.

    Raises:
        UserError: the compressor, the policy or the nodes are refused.
    """
    common: dict[str, Any] = {
        "bounds": network.bounds,
        "world_size": network.bounds.world_size,
        "local_size": question.local_size,
        "rates": question.rates,
    }
    try:
        plan = make_plan(network.model, question.compressor, question.policy, network=question.network, **common)
    except ValueError as error:
        raise UserError(f"plan: {error}") from error
    beside, refused = {}, {}
    policy = "bound" if question.policy in ("none", {"kind": "none"}) else question.policy
    for method in METHODS:
        try:
            beside[method] = make_plan(network.model, method, policy, **common)
        except ValueError as error:
            refused[method] = str(error).split(";")[0]
    return Answer(network, question, plan, beside, refused)


def read_links(
    bandwidth: str | None, latency: str | None, local_bandwidth: str | None, local_latency: str | None
) -> Network | None:
    """The links that the options name; None where none does.

    Raises:
        UserError: an option cannot be read, or has no meaning without another.
    """
    given = {
        "bandwidth": bandwidth,
        "latency": latency,
        "local_bandwidth": local_bandwidth,
        "local_latency": local_latency,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return None
    if bandwidth is None:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise UserError(f"{option}: has no meaning without --bandwidth; give both, such as --bandwidth 25gbit")
    try:
        return Network.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = f"--{str(wrong['loc'][0]).replace('_', '-')}"
        raise UserError(f"{option}: {wrong['msg'].removeprefix('Value error, ')}") from error


def read_spec(option: str, text: str) -> Any:
    """A compressor or a policy: a name, or YAML as a study has it.

    Raises:
        UserError: it is not YAML, or neither a name, a mapping nor a list.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option}: found {text!r}, which is not YAML; allowed is a name or {{kind: …}}") from error
    if value is None:
        return "none"
    if not isinstance(value, str | Mapping | list):
        raise UserError(f"{option}: found {text!r}; allowed is a name or a mapping such as {{kind: fixed, rank: 4}}")
    return value


def check_nodes(networks: Sequence[BoundedNetwork], local_size: int) -> None:
    """Refuse nodes that do not share the workers evenly.

    Raises:
        UserError: naming both numbers.
    """
    for network in networks:
        workers = network.bounds.world_size
        if local_size < 1 or workers % local_size:
            raise UserError(f"--local-size: found {local_size}; allowed is a divisor of the {workers} workers")


def _compresses(plan: Plan) -> bool:
    return any(assignment.method != "dense" for assignment in plan.matrices)
