"""Writes docs/bound_rules.md, the table of all ops that `rank_bounds` knows."""

from pathlib import Path

from compress.bounds.rules import RULES

HEAD = """# The rules

Every op that `compress.rank_bounds` knows, as `compress/bounds/rules/` has it. *full* is a space of which nothing is
known; ⊕ joins spaces; Δ is what arrives. An op that is not here makes spaces full, and is named in the reason and in
`Bounds.unknown_ops`. Written by `python docs/bound_rules.py`.

| ops | rule | why it is sound |
|---|---|---|
"""


def table() -> str:
    """The table, one row a rule."""
    rows: dict[int, tuple[list[str], str]] = {}
    for op, rule in RULES.items():
        names, _ = rows.setdefault(id(rule), ([], f"{rule.does} | {rule.because}"))
        name = str(op).removeprefix("aten.").rsplit(".", 1)[0]
        if f"`{name}`" not in names:
            names.append(f"`{name}`")
    return HEAD + "".join(f"| {', '.join(names)} | {text} |\n" for names, text in rows.values())


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(table(), encoding="utf-8")
