"""Documents that are written by code are what the code writes now."""

import importlib.util
from pathlib import Path

import pytest

from launch.study import read_study
from models import DATA, MODELS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_rules_is_up_to_date():
    spec = importlib.util.spec_from_file_location("bound_rules", DOCS / "bound_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "bound_rules.md").read_text(encoding="utf-8")
    assert written == module.table(), "run `python docs/bound_rules.py`"


@pytest.mark.parametrize("kinds", [MODELS, DATA], ids=["networks", "data"])
def test_the_page_of_networks_and_data_names_all_kinds_and_settings(kinds):
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [`")]
    shared = page[page.index("All have `partition`") :] if kinds is DATA else ""
    for kind, config in kinds.items():
        (row,) = [line for line in rows if f"`{kind}`" in line] or [""]
        if kind == "xlm":
            row += rows[[f"`{kind}`" in line for line in rows].index(True) - 1]
        for field in config.model_fields:
            assert field == "kind" or f"`{field}`" in row + shared, (
                f"{kind} has {field}, which docs/models.md leaves out"
            )


@pytest.mark.parametrize("study", sorted(DOCS.parent.glob("mlflow_configs/*.yaml")), ids=lambda path: path.stem)
def test_studies_that_ship_are_valid(study):
    assert read_study(study).cells
