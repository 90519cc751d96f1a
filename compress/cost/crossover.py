"""Where one plan overtakes another: at which bandwidth, and with how many workers."""

import math
from collections.abc import Callable
from dataclasses import replace

from compress.cost.network import Network
from compress.cost.predict import predict
from compress.cost.rates import Rates
from compress.plan import Plan

MOST_NODES = 2**20


def break_even_bandwidth(plan: Plan, other: Plan, network: Network, rates: Rates | None = None) -> float:
    """Bits per second between nodes below which a plan is faster than another that sends more.

    A step takes fixed + 8·wire/bandwidth, so that both take as long where the bandwidth is
    8·(wire_other − wire)/(fixed − fixed_other).

    Returns:
        0 where the plan is slower at every bandwidth, infinity where it is faster at every one.
    """
    ours, theirs = predict(plan, network, rates), predict(other, network, rates)
    spared = theirs.wire_bytes - ours.wire_bytes
    fixed = ours.seconds - network.sending(ours.wire_bytes) - (theirs.seconds - network.sending(theirs.wire_bytes))
    if spared <= 0:
        return 0.0
    return 8 * spared / fixed if fixed > 0 else math.inf


def break_even_workers(plan: Plan, other: Plan, cost: Callable[[Plan], float]) -> int | None:
    """The number of workers (two or more, whole nodes) from which on a plan costs more than another.

    What each worker sends is taken to stay as it is: as many rows a worker, and the same ranks. The cost of a plan
    that gathers, less that of one that reduces, is convex in the number of workers, so that it comes above zero to
    stay but once.

    Args:
        plan: that gathers.
        other: that reduces.
        cost: of a plan, such as its wire bytes or its predicted seconds.

    Returns:
        None where it never costs more.
    """

    def loses(nodes: int) -> bool:
        size = nodes * plan.local_size
        return cost(replace(plan, world_size=size)) > cost(replace(other, world_size=size))

    doubled = [2**power for power in range(1, MOST_NODES.bit_length())]
    low = max((nodes for nodes in doubled if not loses(nodes)), default=1)  # the last that does not lose
    if low == MOST_NODES:
        return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loses(middle) else (middle, high)
    return high * plan.local_size
