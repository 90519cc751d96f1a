"""The comparison of a study's cells, read back from MLflow: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launch import figures
from launch.tracking import CellRecord, Store, read_study_record


def report(
    store: Store, experiment: str | None, folder: Path, console: Console, *, run_id: str | None = None
) -> Path | None:
    """Print a study as a table and draw its figure: the one of `run_id`, else the newest of the experiment.

    Returns:
        The figure's path; None where no cell has finished.

    Raises:
        UserError: there is no such experiment or no study in it.
    """
    study = read_study_record(store, experiment, run_id)
    cells = read_cells(study.cells)
    if cells.empty:
        console.print("No cell has finished.")
        return None
    summary = summarise(cells)
    print_whole(as_table(summary, title=study.name), console)
    title = f"{study.experiment}: {len(cells)} cells"
    draw = figures.comparison if len(cells[["model", "data"]].drop_duplicates()) == 1 else figures.networks
    return draw(cells, folder / study.experiment / "comparison.png", title)


def read_cells(records: Sequence[CellRecord]) -> pd.DataFrame:
    """One row for each finished cell: params as numbers where they are, and summaries without their prefix."""
    rows = []
    for record in records:
        if record.status != "FINISHED":
            continue
        row: dict[str, Any] = {key: _number(value) for key, value in record.params.items()}
        row |= {
            key.removeprefix("summary/"): value for key, value in record.metrics.items() if key.startswith("summary/")
        }
        row["setting"] = record.setting
        row["method"] = row["compressor"] if row["policy"] == "none" else f"{row['compressor']} ({row['policy']})"
        rows.append(row)
    return pd.DataFrame(rows)


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Average cells that differ in seed and fold alone; `cells` counts them."""
    same = ["model", "data", "setting", "bottleneck", "sequence_length", "alpha", "world_size", "method", "rank"]
    numbers = [column for column in cells.select_dtypes("number") if column not in (*same, "seed", "fold")]
    groups = cells.groupby(same, sort=False, dropna=False)
    means = groups[numbers].mean()
    means["bound_violations"] = groups["bound_violations"].sum() if "bound_violations" in cells else float("nan")
    means["cells"] = groups.size()
    return means.reset_index()


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("model", "model", "{}"),
    ("data", "data", "{}"),
    ("alpha", "α", "{:g}"),
    ("bottleneck", "bottleneck", "{:g}"),
    ("sequence_length", "length", "{:g}"),
    ("world_size", "workers", "{:g}"),
    ("setting", "setting", "{}"),
    ("method", "method", "{}"),
    ("rank", "rank", "{:g}"),
    ("held_out", "held out", "{}"),
    ("accuracy", "accuracy", "{:.2%}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("reconstruction_error", "error", "{:.4f}"),
    ("regression_error", "error", "{:.4f}"),
    ("information_loss", "inf. loss", "{:.1e}"),
    ("bytes_per_step", "bytes/step", "{:,.0f}"),
    ("compression_ratio", "ratio", "{:.2f}×"),
    ("measured_rank", "measured", "{:.0f}"),
    ("bound", "bound", "{:.0f}"),
    ("bound_violations", "broken", "{:.0f}"),
    ("step_time_ms", "ms/step", "{:.1f}"),
)
"""Columns of the table: key, heading, format."""

WIDEST = 1000
"""Columns that a table takes at most in a file."""

TEXTS = ("model", "data", "setting", "method", "held out")
"""Headings of columns that hold words."""

KNOBS = ("model", "data", "alpha", "bottleneck", "sequence_length", "world_size", "setting")
"""Columns that are shown only where the study varies them."""

MEASURES = {
    "accuracy": "{:.1%} right",
    "perplexity": "perplexity {:.4g}",
    "reconstruction_error": "error {:.3g}",
    "regression_error": "error {:.3g}",
}
"""Held-out measures as words, for studies that have several."""


def formatted(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table as text, without columns that hold nothing."""
    measures = [key for key in MEASURES if key in summary and summary[key].notna().any()]
    if len(measures) > 1:
        words = [_in_words(row) for row in summary[measures].to_dict("records")]
        summary = summary.drop(columns=measures).assign(held_out=words)
    knobs = _told_apart_by(summary)
    columns = [
        (key, heading, form)
        for key, heading, form in COLUMNS
        if key in summary and summary[key].notna().any() and (key not in KNOBS or key in knobs)
    ]
    body = [
        [form.format(row[key]) if not _is_missing(row[key]) else "–" for key, _, form in columns]
        for row in summary.to_dict("records")
    ]
    return [heading for _, heading, _ in columns], body


def _told_apart_by(summary: pd.DataFrame) -> list[str]:
    """The knobs to show: those that vary; of several networks only as many as it takes to tell rows apart."""
    varied = [key for key in KNOBS if key in summary and summary[key].nunique() > 1]
    several = {"model", "data"} & set(varied)
    shown: list[str] = []
    for key in varied:
        needed = bool(summary.duplicated([*shown, "method", "rank"]).any())
        if key in several or needed or (not several and key != "setting"):
            shown.append(key)
    return shown


def _in_words(row: dict[Any, Any]) -> str:
    return ", ".join(MEASURES[key].format(value) for key, value in row.items() if not _is_missing(value))


def as_table(summary: pd.DataFrame, title: str) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    headings, body = formatted(summary)
    for heading in headings:
        # Where the terminal is narrow, words go over several lines, so that numbers stay whole.
        is_text = heading in TEXTS
        whole = max(len(row[len(table.columns)]) for row in body) if heading in ("model", "data") else None
        table.add_column(
            heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold", min_width=whole
        )
    for row in body:
        table.add_row(*row)
    return table


def print_whole(table: Table, console: Console) -> None:
    """Print a table; where the console is no terminal, in lines as long as it takes."""
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
        console.width = max(console.width, wanted)
    console.print(table)


def as_markdown(summary: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    headings, body = formatted(summary)
    alignment = ["---" if heading in TEXTS else "--:" for heading in headings]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, alignment, *body])


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and value != value
