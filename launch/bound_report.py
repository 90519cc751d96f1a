"""What `gradrank bound` prints: a table, JSON, or the path to one bound."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launch.bound import BoundedNetwork
from launch.bound_rows import Row, rows_of
from launch.errors import UserError

PICTURES = (".png", ".svg", ".pdf")

PADDING = 3
"""Columns between two columns of a table."""

NAME_WIDTH = 24
"""Columns that names are folded to at most; a table that is wider still is left to the terminal."""

REASON_WIDTH = 35
"""Columns that reasons need beside the numbers; with fewer they are told below the table."""

MOST_NAMES = 8
"""Names of layers that an error lists."""


def print_tables(networks: Sequence[BoundedNetwork], console: Console, *, each: bool) -> None:
    """Print each network's table, its totals, and what the bounds do not know."""
    for network in networks:
        rows = trained_rows(network, each=each)
        console.print(network.title, style="bold", highlight=False, soft_wrap=True)
        if network.cells:
            shared = "\n".join(f"  {name}" for name in network.cells)
            console.print(f"cells:\n{shared}", highlight=False, soft_wrap=True)
        if rows:
            _print_rows(rows, console)
        else:
            console.print("no matrix is trained here")
        frozen = len(network.bounds) - len(network.itemsizes)
        notes = []
        if network.vectors:
            notes.append(f"{human(network.vectors)} of biases and other vectors are sent besides.")
        if frozen:
            notes.append(f"{frozen} frozen matrices (requires_grad=False) are left out: nothing is sent for them.")
        if any(row.is_lossy and row.losses for row in rows):
            notes.append(
                "loss: of the linear rank, in units of N_A · N_Δ (≤ proven, ≈ calibrated); see docs/bounds.md."
            )
        for name, count in network.bounds.unknown_ops.items():
            calls = "once" if count == 1 else f"{count} times"
            notes.append(f"no rule for {name} (called {calls}): everything behind it counts as full.")
        if sum(len(row.names) for row in rows) > len(rows):
            notes.append("Layers that are alike share a row; --all shows each.")
        for note in notes:
            console.print(note, highlight=False, soft_wrap=True)
        console.print()


def _print_rows(rows: Sequence[Row], console: Console) -> None:
    lossy = any(row.is_lossy for row in rows)
    headings = ["parameter", "shape", "bound", "of full", *(("linear", "loss") if lossy else ()), "dense", "at bound"]
    body = [_cells(row, lossy) for row in rows]
    matrices = sum(len(row.names) for row in rows)
    dense, at_bound = (human(sum(sizes)) for sizes in zip(*((row.dense, row.at_bound) for row in rows), strict=True))
    totals = [f"{matrices} {'matrix' if matrices == 1 else 'matrices'}", *[""] * (len(headings) - 3), dense, at_bound]
    widths = [max(map(len, column)) for column in zip(headings, totals, *body, strict=True)]
    inline = console.width - sum(widths) - PADDING * len(widths) >= REASON_WIDTH
    reasons = list(dict.fromkeys(row.reason for row in rows))

    table = Table(box=SIMPLE_HEAD, header_style="bold", show_footer=True, padding=(0, 1), pad_edge=False)
    table.add_column(headings[0], totals[0], overflow="fold", min_width=widths[0] if inline else None)
    for heading, total in zip(headings[1:], totals[1:], strict=True):
        table.add_column(heading, total, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for row, cells in zip(rows, body, strict=True):
        table.add_row(*cells, row.reason if inline else _letter(reasons.index(row.reason)))
    fits = sum(widths[1:]) + PADDING * len(widths) + min(widths[0], NAME_WIDTH) + len("why")
    console.width = max(console.width, fits)  # else columns would be dropped, the names first
    console.print(table)
    if not inline:
        for number, reason in enumerate(reasons):
            console.print(f"{_letter(number):>2}  {reason}", highlight=False, soft_wrap=True)
        console.print()


def _cells(row: Row, lossy: bool) -> list[str]:
    bound = row.bound
    cells = [row.label, "{} × {}".format(*bound.shape), str(bound.rank), percent(row.share)]
    if lossy:
        cells += [str(bound.linear_rank), _loss(row)] if row.is_lossy else ["", ""]
    return [*cells, human(row.dense), human(row.at_bound)]


def _loss(row: Row) -> str:
    if row.losses is None:
        return "–"
    least, most = (f"{loss:.2g}" for loss in row.losses)
    sign = "≤" if row.bound.certificate == "proven" else "≈"
    return f"{sign} {most}" if least == most else f"{sign} {least}–{most}"


def _letter(number: int) -> str:
    """The letters a to z, then aa, ab, …"""
    before, last = divmod(number, 26)
    return (_letter(before - 1) if before else "") + chr(ord("a") + last)


def as_json(networks: Sequence[BoundedNetwork]) -> dict[str, Any]:
    """One network's bounds and bytes; of a study all networks, with the cells that share them."""
    if networks[0].cells:
        return {"networks": [{"title": n.title, "cells": list(n.cells), **_one_json(n)} for n in networks]}
    return _one_json(networks[0])


def _one_json(network: BoundedNetwork) -> dict[str, Any]:
    found = network.bounds.to_dict()
    rows = {row.label: row for row in trained_rows(network, each=True)}
    for name, bound in found["bounds"].items():
        row = rows.get(name)
        bound |= {"bytes_dense": row.dense if row else 0, "bytes_at_bound": row.at_bound if row else 0}
    found["bytes"] = {
        "dense": sum(row.dense for row in rows.values()),
        "at_bound": sum(row.at_bound for row in rows.values()),
        "vectors": network.vectors,
    }
    return found


def print_paths(networks: Sequence[BoundedNetwork], layer: str, console: Console) -> None:
    """Print how a layer's bound came about, in each network that has the layer.

    Raises:
        UserError: no layer, or more than one, is meant.
    """
    found = [(network, name) for network in networks for name in _meant(network, layer)]
    if not found:
        names = list(dict.fromkeys(name for network in networks for name in network.bounds))
        near = difflib.get_close_matches(layer, names, n=MOST_NAMES, cutoff=0.3) or names[:MOST_NAMES]
        raise UserError(f"--explain {layer}: no parameter has this in its name; near are {', '.join(near)}")
    for network, name in found:
        console.print(network.title, style="bold", highlight=False, soft_wrap=True)
        console.print("{}, {} × {}".format(name, *network.bounds[name].shape), highlight=False)
        for line in network.bounds[name].path():
            console.print(line, highlight=False, soft_wrap=True)
        console.print()


def _meant(network: BoundedNetwork, layer: str) -> list[str]:
    """The parameter of this name, or the one that has this in its name."""
    if layer in network.bounds:
        return [layer]
    names = [name for name in network.bounds if layer in name]
    if len(names) > 1:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        raise UserError(
            f"--explain {layer}: found in {len(names)} parameters: {', '.join(names[:MOST_NAMES])}{more}; give more of "
            "one's name"
        )
    return names


def check_picture(path: Path) -> None:
    """Refuse a picture of a kind that cannot be drawn, before any time is spent.

    Raises:
        UserError: its ending is unknown.
    """
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--picture {path}: found ending {path.suffix!r}; allowed are {', '.join(PICTURES)}")


def draw(networks: Sequence[BoundedNetwork], path: Path, *, each: bool) -> None:
    """Draw all networks' bounds into one picture.

    Raises:
        UserError: the file cannot be written.
    """
    from launch import figures

    panels = [(network.title, trained_rows(network, each=each)) for network in networks]
    try:
        figures.bounds(panels, path)
    except OSError as error:
        raise UserError(f"--picture {path}: cannot be written: {error.strerror}; give another path") from error


def trained_rows(network: BoundedNetwork, *, each: bool) -> list[Row]:
    """The rows of the matrices that are trained."""
    trained = {name: bound for name, bound in network.bounds.items() if name in network.itemsizes}
    return rows_of(trained, network.itemsizes, each=each)


def percent(share: float) -> str:
    """A share in per cent; small ones with one digit more."""
    return f"{share:.1%}" if 0 < share < 0.0095 else f"{share:.0%}"


def human(size: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
