"""The comparison: what is averaged, and what is kept apart."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from PIL import Image
from rich.console import Console

from launch import figures
from launch.report import as_markdown, as_table, print_whole, read_cells, summarise
from launch.tracking import CellRecord
from launch.view import shared_view


def record(accuracy: float, status: str = "FINISHED", setting: str = "", **params: str) -> CellRecord:
    common = {
        "model": "mlp",
        "data": "digits",
        "compressor": "powersgd",
        "policy": "bound",
        "rank": "9",
        "bottleneck": "8",
        "sequence_length": "1",
        "alpha": "1.0",
        "world_size": "2",
        "seed": "0",
        "fold": "0",
    }
    metrics = {"summary/accuracy": accuracy, "summary/bound_violations": 1.0, "train/loss": 3.0}
    return CellRecord("id", "name", status, setting, common | params, metrics)


def test_cells_that_differ_in_seed_and_fold_alone_are_averaged():
    cells = read_cells([record(0.8), record(0.9, seed="1"), record(0.7, fold="2"), record(0.1, status="FAILED")])
    (row,) = summarise(cells).to_dict("records")
    assert abs(row["accuracy"] - 0.8) < 1e-12
    assert row["cells"] == 3
    assert row["bound_violations"] == 3
    assert "loss" not in row


def test_cells_of_other_settings_are_kept_apart():
    others = [record(0.8, setting="lr=1"), record(0.8, alpha="0.5"), record(0.8, compressor="powersgd oversample=8")]
    assert len(summarise(read_cells([record(0.8), *others]))) == 4


def test_columns_that_do_not_vary_are_left_out():
    table = as_markdown(summarise(read_cells([record(0.8), record(0.9, compressor="dense", policy="none", rank="64")])))
    heading = table.splitlines()[0]
    assert "α" not in heading
    assert "method" in heading
    assert "| dense |" in table
    assert "80.00%" in table


def several() -> list[CellRecord]:
    """Two networks with other measures, each by two methods, told apart in their settings besides."""
    records = []
    for model, data, measure in (("mlp", "mnist", "accuracy"), ("bert", "wikitext2", "perplexity")):
        for number, policy in enumerate(("none", "bound")):
            setting, bottleneck = f"model={model}(width=8)", "8" if model == "mlp" else "64"
            made = record(0.5, setting=setting, model=model, data=data, bottleneck=bottleneck, policy=policy)
            metrics = {f"summary/{measure}": 0.75 if measure == "accuracy" else 12.5, "summary/loss": 1.0}
            metrics["summary/wire_bytes_per_step"] = 1000.0 * (number + 1)
            records.append(replace(made, metrics=metrics))
    return records


def test_several_networks_are_told_by_name_and_each_by_its_own_measure():
    heading, _, *rows = as_markdown(summarise(read_cells(several()))).splitlines()
    assert heading.startswith("| model | data | method | rank | held out |")
    assert rows[0].startswith("| mlp | mnist | powersgd | 9 | 75.0% right |")
    assert rows[2].startswith("| bert | wikitext2 | powersgd | 9 | perplexity 12.5 |")


def test_knobs_of_several_networks_are_shown_where_names_do_not_tell_them_apart():
    more = [*several(), record(0.5, model="mlp", data="mnist", policy="none", bottleneck="16", alpha="0.5")]
    heading = as_markdown(summarise(read_cells(more))).splitlines()[0]
    assert "α" in heading  # enough by itself
    assert "bottleneck" not in heading


def test_the_figure_of_several_networks_has_a_panel_for_each(tmp_path):
    path = figures.networks(read_cells(several()), tmp_path / "new" / "networks.png", "two networks")
    assert Image.open(path).width > 700
    one = figures.networks(read_cells(several()[:2]), tmp_path / "one.png", "one network")
    assert Image.open(one).width < 500


def test_a_data_set_with_two_measures_has_a_panel_for_each(tmp_path):
    accuracy, *_, perplexity = several()
    same = replace(perplexity, params=accuracy.params)
    path = figures.networks(read_cells([accuracy, same]), tmp_path / "two.png", "two measures")
    assert Image.open(path).width > 700


def test_one_worker_is_drawn_by_what_it_hands_over(tmp_path, recwarn):
    alone = [
        replace(cell, params=cell.params | {"world_size": "1"}, metrics=cell.metrics | handed)
        for cell in several()
        for handed in [{"summary/wire_bytes_per_step": 0.0, "summary/bytes_per_step": 500.0}]
    ]
    figures.networks(read_cells(alone), tmp_path / "one.png", "one worker")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("draw", [figures.comparison, figures.networks])
def test_cells_that_diverged_are_drawn_without_their_measure(tmp_path, recwarn, draw):
    finite = {"summary/wire_bytes_per_step": 1.0, "summary/information_loss": 0.0}
    diverged = [replace(cell, metrics=finite) for cell in several()]
    for name, cells in (("all", diverged), ("some", [*several()[:1], *diverged[1:]])):
        assert draw(read_cells(cells), tmp_path / f"{name}.png", "diverged").exists()
    assert [str(warning.message) for warning in recwarn] == []


def test_tables_in_files_are_whole():
    console = Console(width=60, file=StringIO(), markup=False)
    table = as_table(summarise(read_cells([record(0.8, setting="x" * 90), record(0.9, setting="y")])), "title")
    print_whole(table, console)
    assert "x" * 90 in console.file.getvalue()


def test_the_shared_view_fits_into_a_tag():
    view = shared_view("0" * 32)
    assert len(view) < 5000
    assert {chart["type"] for chart in json.loads(view)["compareRunCharts"]} == {"SCATTER", "PARALLEL"}
