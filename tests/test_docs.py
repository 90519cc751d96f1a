"""Documents that are written by code are what the code writes now."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_rules_is_up_to_date():
    spec = importlib.util.spec_from_file_location("bound_rules", DOCS / "bound_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "bound_rules.md").read_text(encoding="utf-8")
    assert written == module.table(), "run `python docs/bound_rules.py`"
