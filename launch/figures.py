"""Pictures: how a study's cells compare, and how bounds do."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from launch.bound_rows import Row

LOSS_FLOOR = 1e-8
"""Where information losses are cut off on a logarithmic axis: float32 roundoff and exact zeros."""

QUALITY = ("accuracy", "perplexity", "reconstruction_error", "regression_error", "loss")
"""Held-out measures, in order of preference; every cell has the last."""

MARKERS = "osD^vP*X"
DODGE = 1.06
"""Factor that sets methods of equal rank apart."""

BAR_START = 0.7
"""Where bars of ranks begin on a logarithmic axis: below 1, so that rank 1 has a length."""


def comparison(cells: pd.DataFrame, path: Path, title: str) -> Path:
    """Quality, information loss and bytes of each cell against the rank it communicated.

    Args:
        cells: one row a cell, as `report.read_cells` gives them.
        path: of the picture to write.
        title: above all.
    """
    cells = _with_loss(cells)
    quality = next(name for name in QUALITY if name in cells)
    panels = [
        (quality, f"held-out {quality.replace('_', ' ')}", False),
        ("information_loss", f"information loss  ‖G − Ĝ‖ / ‖G‖  (0 at {LOSS_FLOOR:.0e})", True),
        (*_bytes(cells), True),
    ]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    methods = list(dict.fromkeys(cells["method"]))
    alphas = sorted(set(cells["alpha"]), reverse=True)
    for axes, (column, label, logarithmic) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for number, method in enumerate(methods):
            for alpha, marker in zip(alphas, _cycle(MARKERS, len(alphas)), strict=True):
                chosen = cells[(cells["method"] == method) & (cells["alpha"] == alpha)]
                if column not in chosen or chosen.empty:
                    continue
                values = chosen[column].clip(lower=LOSS_FLOOR) if column == "information_loss" else chosen[column]
                ranks = [rank * _dodge(cells, method, rank) for rank in chosen["rank"]]
                axes.scatter(ranks, values, **_look(number, marker), label=f"{method}, α = {alpha:g}")
        if logarithmic:
            axes.set_yscale("log")
        if "bytes" in column:
            axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter(EngFormatter(unit="B"))
        if column == quality:
            _hide_roundoff(axes, cells[column])
        _rank_axis(axes, cells["rank"])
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), fontsize=8, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def networks(cells: pd.DataFrame, path: Path, title: str) -> Path:
    """Quality against bytes on the wire, a panel for each network on its data.

    Args:
        cells: one row a cell, as `report.read_cells` gives them.
        path: of the picture to write.
        title: above all.
    """
    by, label = _bytes(cells)
    # By measure besides, since one data set may have several tasks.
    cells = _with_loss(cells)
    measured = cells[[name for name in QUALITY if name in cells]].notna().assign(loss=True)
    cells = cells.assign(quality=measured.idxmax(axis=1))
    groups = list(cells[["model", "data", "quality"]].drop_duplicates().itertuples(index=False, name=None))
    columns = min(4, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.6 * rows + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    methods = list(dict.fromkeys(cells["method"]))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (model, data, quality) in zip(panels, groups, strict=False):
        mine = cells[(cells["model"] == model) & (cells["data"] == data) & (cells["quality"] == quality)]
        for number, (method, marker) in enumerate(zip(methods, _cycle(MARKERS, len(methods)), strict=True)):
            chosen = mine[mine["method"] == method]
            axes.scatter(chosen[by], chosen[quality], **_look(number, marker), label=method)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=""))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(mine[by].min() / 3, mine[by].max() * 3)  # wide enough for two ticks or more
        axes.margins(y=0.25)
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        _hide_roundoff(axes, mine[quality])
        axes.set_title(f"{model} on {data}", fontsize=9)
        axes.set_ylabel(quality.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    figure.supxlabel(label, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def bounds(panels: Sequence[tuple[str, Sequence[Row]]], path: Path) -> Path:
    """Bound against full rank, a bar for each row of a table of bounds, and the linear rank as a mark.

    Args:
        panels: title and rows of each network, drawn one above the other.
        path: of the picture to write.
    """
    lines = [max(1, len(rows)) for _, rows in panels]
    figure = Figure(figsize=(10, sum(0.24 * count + 1.1 for count in lines) + 0.4), layout="constrained")
    heights = [0.24 * count + 0.5 for count in lines]
    for axes, (title, rows) in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, strict=True
    ):
        _bound_bars(axes, rows)
        axes.set_title(title, fontsize=11, loc="left", pad=22)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _bound_bars(axes: Axes, rows: Sequence[Row]) -> None:
    full = [min(row.bound.shape) for row in rows]
    blue, orange = colormaps["tab10"](0), colormaps["tab10"](1)
    places = range(len(rows))
    axes.barh(places, [most - BAR_START for most in full], left=BAR_START, height=0.72, color="0.9", label="full rank")
    lengths = [max(0.0, row.bound.rank - BAR_START) for row in rows]
    axes.barh(places, lengths, left=BAR_START, height=0.72, color=blue, alpha=0.85, label="bound")
    lossy = [place for place, row in enumerate(rows) if row.is_lossy]
    if lossy:
        linear = [rows[place].bound.linear_rank for place in lossy]
        axes.scatter(linear, lossy, s=26, marker="D", color=orange, edgecolors="white", zorder=3, label="linear rank")
    for place, row, most in zip(places, rows, full, strict=True):
        words = f"{row.bound.rank} of {most}"
        axes.annotate(words, (most, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    ticks = [2**power for power in range(math.ceil(math.log2(max(full, default=1))) + 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
    axes.set_xlim(BAR_START, ticks[-1] * (ticks[-1] / BAR_START) ** 0.16)  # a share of the width is for the words
    axes.set_xlabel("rank", fontsize=9)
    axes.set_yticks(places, [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False, borderaxespad=0.2)


def _with_loss(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with a column of losses, which is not there where all have diverged."""
    return cells if "loss" in cells else cells.assign(loss=float("nan"))


def _bytes(cells: pd.DataFrame) -> tuple[str, str]:
    """The column of bytes to draw, and its label: where a cell has one worker, nothing goes over a wire."""
    if (cells["world_size"] > 1).all():
        return "wire_bytes_per_step", "wire bytes a step and worker"
    return "bytes_per_step", "bytes a step that a worker hands to collectives"


def _look(method: int, marker: str) -> dict[str, Any]:
    """How the points of a method look, by its number."""
    colour = colormaps["tab10"](method % 10)
    return {"s": 46, "color": colour, "marker": marker, "alpha": 0.75, "edgecolors": "white", "linewidths": 0.6}


def _hide_roundoff(axes: Axes, values: "pd.Series[float]") -> None:
    """Draw values at one height that differ by roundoff alone."""
    lowest, highest = float(values.min()), float(values.max())
    if highest - lowest < 1e-4 * abs(highest):
        axes.set_ylim(lowest - 0.05 * abs(highest), highest + 0.05 * abs(highest))


def _dodge(cells: pd.DataFrame, method: str, rank: float) -> float:
    """What to multiply a rank by, so that methods of the same rank stand side by side around it."""
    same = list(dict.fromkeys(cells[cells["rank"] == rank]["method"]))
    return float(DODGE ** (same.index(method) - (len(same) - 1) / 2))


def _rank_axis(axes: Axes, ranks: "pd.Series[float]") -> None:
    """A logarithmic axis of ranks, marked in whole numbers."""
    axes.set_xscale("log", base=2)
    lowest, highest = max(1.0, float(ranks.min())), float(ranks.max())
    powers = range(math.floor(math.log2(lowest)), math.ceil(math.log2(highest)) + 1)
    ticks = [2**power for power in powers]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axes.set_xlabel("communicated rank (largest in the plan)")


def _cycle(symbols: str, count: int) -> list[str]:
    return [symbols[index % len(symbols)] for index in range(count)]
