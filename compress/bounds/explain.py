"""How a bound came about, in words: where its spaces start, and what they pass on the way."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compress.bounds.maps import Centre, Diagonal, Embed, Kernel, Linear, Map, Row, Scale, Select, Tile, Total, Unknown
from compress.bounds.spaces import Generator

if TYPE_CHECKING:
    from compress.bounds.result import RankBound, Subspaces

_MOST_GENERATORS = 6
_MOST_STEPS = 10

Names = Mapping[str, str]
"""Dotted names of parameters, by their placeholders."""


def path(bound: "RankBound") -> list[str]:
    """The lines of `RankBound.path`."""
    m, n = bound.shape
    lines = [f"bound {bound.rank} of {min(m, n)}: {bound.reason}"]
    if bound.spaces is not None:
        spaces = bound.spaces
        for title, generators in (("inputs A", spaces.inputs), ("adjoints Δ", spaces.adjoint)):
            lines += _side(title, generators, spaces, bound)
    if bound.rows is not None:
        sets = ": they set the bound" if "rows: " in bound.reason else ""
        lines.append(f"rows: {bound.rows} of each worker in a step{sets}")
    if bound.linear_rank != bound.rank:
        lines.append(f"linear rank {bound.linear_rank}: the bound if every activation were a multiple of its input")
    if bound.certified_loss:
        lines.append(f"certified loss of the linear rank: {bound.certified_loss:.3g} · N_A · N_Δ ({bound.certificate})")
    return lines


def _side(title: str, generators: tuple[Generator, ...], spaces: "Subspaces", bound: "RankBound") -> list[str]:
    if not generators:
        return [f"{title}: always zero"]
    width = generators[0].width
    dimension = spaces.dimensions(generators, width)
    sets = ": they set the bound" if dimension == bound.rank else ""
    lines = [f"{title}: {dimension} of {width} dimensions{sets}"]
    lines += [f"  {_chain(generator, spaces.names)}" for generator in generators[:_MOST_GENERATORS]]
    if len(generators) > _MOST_GENERATORS:
        lines.append(f"  … {len(generators) - _MOST_GENERATORS} more")
    return lines


def _chain(generator: Generator, names: Names) -> str:
    """From the source to the generator, with the limit after each step; a sum is followed to its oldest part."""
    steps: list[str] = []
    here, after = generator, None
    while here.parts:
        steps.append(f"{_step(here, names)} ≤ {here.limit}")
        here, after = here.parts[0], here.map
    source = "the constant 1" if isinstance(after, Row) else _source(here, names)
    steps.append(f"{source} ≤ {here.limit}")
    steps.reverse()
    if len(steps) > _MOST_STEPS:
        half = _MOST_STEPS // 2
        steps = [*steps[:half], f"… {len(steps) - 2 * half} more steps …", *steps[-half:]]
    return " → ".join(steps)


def _source(generator: Generator, names: Names) -> str:
    match generator.source:
        case ("parameter", str(name)):
            return f"the rows of {_dotted(name, names)}"
        case _:
            return generator.label or f"anything {generator.width} wide"


def _step(generator: Generator, names: Names) -> str:
    """What a generator's last step does to its first part."""
    if isinstance(generator.map, tuple):
        before, after = generator.map
        return f"side by side at {before * after} positions"
    if generator.map is None:
        return f"sum with {_counted(len(generator.parts) - 1, 'other way')} on the same rows"
    return _map(generator.map, names)


def _map(map: Map, names: Names) -> str:
    match map:
        case Linear(name=name, transposed=transposed):
            return _dotted(name, names) + ("" if transposed else "ᵀ")  # a row x goes to x Wᵀ, and an adjoint back by W
        case Kernel(name=name, offset=offset, group=group, groups=groups):
            of_group = f", group {group}" if groups > 1 else ""
            return f"{_dotted(name, names)} at offset {offset}{of_group}"
        case Row(name=name):
            return _dotted(name, names)
        case Diagonal(name=name, inverted=inverted):
            return f"{'divided by' if inverted else 'scaled by'} {_dotted(name, names)}"
        case Unknown(diagonal=True, local=local):
            return "scaled by computed numbers" + (", other ones in each pass" if local else "")
        case Unknown(local=local):
            return "times a computed matrix" + (", another in each pass" if local else "")
        case Scale(factor=factor):
            return f"times {factor:g}"
        case Select(columns=columns, start=start, step=step, rows=rows):
            return f"entries {_entries(start, step, columns)} of {rows}"
        case Embed(columns=columns, start=start, step=step, rows=rows):
            return f"put at entries {_entries(start, step, rows)} of {columns}"
        case Centre():
            return "less its mean"
        case Total():
            return "summed"
        case Tile(rows=rows, columns=columns):
            return f"repeated {_counted(columns // rows, 'time')}"
        case _:
            return type(map).__name__.lower()


def _entries(start: int, step: int, count: int) -> str:
    """The indices start, start + step, … in short."""
    indices = range(start, start + step * count, step)
    if count <= 2:
        return ",".join(map(str, indices))
    return f"{start}…{indices[-1]}" if step == 1 else f"{start},{start + step}…{indices[-1]}"


def _dotted(placeholder: str, names: Names) -> str:
    return names.get(placeholder, placeholder).removeprefix("model.")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
