"""The picture of what audits saw in one cell."""

import math
from pathlib import Path

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SPECTRUM_FLOOR = 1e-12
"""Share of the largest singular value below which the others are not drawn."""


def draw_audits(rows: pd.DataFrame, path: Path, title: str) -> Path:
    """What audits saw of one cell: ranks over time beside their bounds, the last spectra, and the loss split.

    Where ranks of A and Δ were measured, a second row of panels shows them over time.

    Args:
        rows: of `AuditRow`.
        path: of the picture to write.
        title: above all.
    """
    lower = bool(rows["input_rank"].notna().any())
    figure = Figure(figsize=(15, 8.2 if lower else 4.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1 + lower, 3, squeeze=False)
    over_time, spectra, losses = panels[0]
    last = rows["step"].max()
    names = list(dict.fromkeys(rows["name"]))
    colours = {
        name: colormaps["tab10" if len(names) <= 10 else "viridis"](_shade(i, len(names)))
        for i, name in enumerate(names)
    }
    for name, colour in colours.items():
        mine = rows[rows["name"] == name]
        over_time.plot(mine["step"], mine["measured_rank"], color=colour, marker=".", label=name)
        bound = mine["bound"].iloc[0]
        if bound is not None and not math.isnan(bound):
            over_time.axhline(bound, color=colour, linestyle=":", linewidth=1)
        values = mine[mine["step"] == last]["singular_values"].iloc[0]
        relative = [value / values[0] for value in values if values[0] > 0 and value > SPECTRUM_FLOOR * values[0]]
        spectra.semilogy(range(1, len(relative) + 1), relative, color=colour, marker=".", markersize=3, label=name)
    over_time.set(xlabel="step", ylabel="rank of the mean gradient (dotted: bound)")
    over_time.set_ylim(bottom=0, top=1.1 * max(1.0, over_time.get_ylim()[1]))
    spectra.set(xlabel="k", ylabel=f"σₖ / σ₁ at step {last}", xscale="log")
    _loss_split(losses, rows)
    if lower:
        for axes, column, word in zip(
            panels[1], ("input_rank", "adjoint_rank"), ("inputs A", "adjoints Δ"), strict=False
        ):
            for name, colour in colours.items():
                mine = rows[(rows["name"] == name) & rows[column].notna()]
                axes.plot(mine["step"], mine[column], color=colour, marker=".", label=name)
            axes.set(xlabel="step", ylabel=f"rank of the {word} of one worker")
            axes.set_ylim(bottom=0)
        panels[1][2].axis("off")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    if len(names) <= 12:
        spectra.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    return path


def _shade(number: int, count: int) -> float | int:
    return number if count <= 10 else number / (count - 1)


def _loss_split(axes: Axes, rows: pd.DataFrame) -> None:
    """Compression error over time, all compressed matrices together: what the rank costs, and what iterating lost."""
    compressed = rows[rows["compressed"]]
    axes.set(xlabel="step", ylabel="compression error")
    if not len(compressed):
        axes.annotate("nothing is compressed", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=9)
        return
    energies = compressed.assign(
        unavoidable=(compressed["unavoidable_error"] * compressed["input_norm"]) ** 2,
        all=compressed["input_error_norm"] ** 2,
        size=compressed["input_norm"] ** 2,
    )
    sums = energies.groupby("step")[["unavoidable", "all", "size"]].sum()
    sums = sums[sums["size"] > 0]
    whole, unavoidable = (sums["all"] / sums["size"]) ** 0.5, (sums["unavoidable"] / sums["size"]) ** 0.5
    axes.fill_between(sums.index, 0, unavoidable, alpha=0.35, label="unavoidable at this rank")
    axes.fill_between(sums.index, unavoidable, whole, alpha=0.35, label="lost by iteration")
    axes.plot(sums.index, whole, color="0.2", marker=".", linewidth=1, label="compression error")
    axes.set_ylim(bottom=0, top=max(1e-6, 1.15 * float(whole.max())))
    axes.legend(fontsize=7, frameon=False)
