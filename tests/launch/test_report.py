"""The comparison: what is averaged, and what is kept apart."""

import json

from launch.report import as_markdown, read_cells, summarise
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


def test_the_shared_view_fits_into_a_tag():
    view = shared_view("0" * 32)
    assert len(view) < 5000
    assert {chart["type"] for chart in json.loads(view)["compareRunCharts"]} == {"SCATTER", "PARALLEL"}
