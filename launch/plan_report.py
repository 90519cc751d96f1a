"""What `gradrank plan` prints: the plan, the methods side by side, and where one overtakes another; or JSON."""

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from compress import Plan
from compress.cost.units import tell_bandwidth, tell_seconds
from launch.bound_report import human
from launch.plan_command import Answer

REASON_WIDTH = 40
"""Columns that reasons are given at least; a terminal that is narrower folds them."""


def print_answer(answer: Answer, console: Console) -> None:
    """Print a plan, the methods beside it, and the crossovers."""
    nodes = f", {answer.question.local_size} to a node" if answer.question.local_size > 1 else ""
    links = answer.question.network
    on = f", {tell_bandwidth(links.bandwidth)}, {tell_seconds(links.latency)}" if links is not None else ""
    console.print(f"{answer.network.title}{nodes}{on}", style="bold", highlight=False, soft_wrap=True)
    console.print(_plan_table(answer.plan))
    console.print(_methods_table(answer))
    for line in _crossovers(answer):
        console.print(line, highlight=False, soft_wrap=True)
    for name, why in answer.refused.items():
        console.print(f"{name}: {why}", highlight=False, soft_wrap=True)
    console.print()


def _plan_table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", show_footer=True, padding=(0, 1), pad_edge=False)
    table.add_column("parameter", f"{len(plan)} parameters", overflow="fold")
    for heading, total in (("shape", ""), ("method", ""), ("rank", ""), ("bound", ""), ("bytes", human(plan.bytes))):
        table.add_column(heading, total, justify="left" if heading == "method" else "right", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=REASON_WIDTH)
    for row in plan.rows():
        bound = "" if row["bound"] is None else str(row["bound"])
        mark = "" if row["lossless"] else " (lossy)"
        table.add_row(
            row["name"], row["shape"], row["method"] + mark, str(row["rank"]), bound, human(row["bytes"]), row["reason"]
        )
    return table


def _methods_table(answer: Answer) -> Table:
    timed = answer.question.network is not None
    headings = ["method", "compressed", "bytes", "on the wire"]
    headings += ["collectives", "computing", "sending", "step", "faster than dense"] if timed else []
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1), pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name, plan in answer.plans.items():
        compressed = sum(assignment.method != "dense" for assignment in plan.matrices)
        cells = [name, f"{compressed} of {len(plan.matrices)}", human(plan.bytes), human(plan.wire_bytes)]
        cost = answer.cost(plan)
        if cost is not None:
            cells += [
                str(cost.collectives),
                tell_seconds(cost.compute),
                tell_seconds(cost.communication),
                tell_seconds(cost.seconds),
                "" if compressed == 0 else _below(answer.fastest_below(plan)),
            ]
        table.add_row(*cells)
    return table


def _below(bandwidth: float | None) -> str:
    if bandwidth is None or math.isinf(bandwidth):
        return "always"
    return f"below {tell_bandwidth(bandwidth)}" if bandwidth > 0 else "never"


def _crossovers(answer: Answer) -> list[str]:
    costs = "takes longer" if answer.question.network is not None else "sends more"
    lines = []
    for (gathers, reduces), workers in answer.loses_from().items():
        when = f"from {workers} workers on" if workers is not None else "with no number of workers"
        lines.append(f"{gathers} {costs} than {reduces} {when}, with as many rows a worker.")
    if answer.question.network is not None:
        lines.append("Seconds are beyond the forward and backward passes, as if nothing overlapped; see docs/cost.md.")
    return lines


def as_json(answer: Answer) -> dict[str, Any]:
    """The same as plain values; a crossover that lies at no bandwidth is null where compression is always faster."""
    links = answer.question.network
    return {
        "title": answer.network.title,
        "cells": list(answer.network.cells),
        "world_size": answer.plan.world_size,
        "local_size": answer.plan.local_size,
        "network": None if links is None else links.model_dump(),
        "plan": answer.plan.rows(),
        "methods": {name: _method_json(answer, plan) for name, plan in answer.plans.items()},
        "refused": dict(answer.refused),
        "workers": [
            {"method": gathers, "than": reduces, "loses_from": workers}
            for (gathers, reduces), workers in answer.loses_from().items()
        ],
    }


def _method_json(answer: Answer, plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "compressed": sum(assignment.method != "dense" for assignment in plan.matrices),
        "lossless": all(assignment.lossless for assignment in plan.values()),
        "bytes": plan.bytes,
        "wire_bytes": plan.wire_bytes,
    }
    cost, below = answer.cost(plan), answer.fastest_below(plan)
    if cost is not None and below is not None:
        found |= {
            "inside_bytes": cost.inside_bytes,
            "collectives": cost.collectives,
            "compute_s": cost.compute,
            "communication_s": cost.communication,
            "step_s": cost.seconds,
            "faster_than_dense_below": None if math.isinf(below) else below,
        }
    return found
