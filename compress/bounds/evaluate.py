"""Orthonormal bases from the weights: the steps of a recipe carried out, each weight read as seldom as can be."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from compress.bounds.maps import (
    Centre,
    Diagonal,
    Embed,
    Kernel,
    Linear,
    Map,
    Row,
    Scale,
    Select,
    Tile,
    Total,
)
from compress.bounds.recipe import Beside, Contrasts, Everything, How, Mixed, Output, Recipe, Stored, Sum, read
from compress.factor_products import times_columns

_CHUNK = 256
"""Rows of a coarse weight that are converted at a time."""


class Evaluator:
    """Computes some spaces of a recipe: equal weights give equal bases, bit by bit on equal machines.

    Narrow matrices are float64. They meet a weight in the weight's own type (coarser ones in float32), all
    that need it at one time together, so that a deep network's weights are read once a call.
    """

    def __init__(self, recipe: Recipe, outputs: Sequence[Output]) -> None:
        self._recipe, self._outputs = recipe, outputs
        self._order = _schedule(recipe, outputs)
        self._constants: dict[tuple[Hashable, torch.device], Tensor] = {}

    @property
    def parameters(self) -> set[str]:
        """Names of the parameters that are read."""
        steps = [self._recipe.steps[place].how for places in self._order for place in places]
        return {self._recipe.names[name] for name in map(read, steps) if name is not None}

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Bases (width × columns) in float64, one for each output.

        Args:
            weights: by the names of `parameters`; read where they are, and never copied as a whole.
        """
        device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
        with torch.autocast(device.type, enabled=False):
            call = _Call(self._recipe, weights, device, self._constants)
            for places in self._order:
                call.run(places)
            return [call.basis(output) for output in self._outputs]


def _schedule(recipe: Recipe, outputs: Sequence[Output]) -> list[list[int]]:
    """The steps needed, in groups that can be done at once: products with one weight wait for each other."""
    needed, pending = set[int](), [part for output in outputs for part in output.parts]
    while pending:
        place = pending.pop()
        if place not in needed:
            needed.add(place)
            pending += recipe.steps[place].parts
    waiting, order, done = sorted(needed), list[list[int]](), set[int]()
    while waiting:
        ready = [place for place in waiting if done.issuperset(recipe.steps[place].parts)]
        group = [place for place in ready if not isinstance(recipe.steps[place].how, Linear | Kernel)]
        if not group:
            # First the weights that nobody will read again, then whatever comes first.
            later = Counter(_read_by(recipe.steps[place].how) for place in waiting)
            by_weight: dict[Hashable, list[int]] = {}
            for place in ready:
                by_weight.setdefault(_read_by(recipe.steps[place].how), []).append(place)
            key = min(by_weight, key=lambda key: later[key] - len(by_weight[key]))
            group = by_weight[key]
        order.append(group)
        done.update(group)
        waiting = [place for place in waiting if place not in done]
    return order


def _read_by(how: How) -> Hashable:
    """What is read by a product, for steps that are one."""
    match how:
        case Linear(name=name, transposed=transposed):
            return name, transposed
        case Kernel(name=name, group=group, transposed=transposed, swapped=swapped):
            return name, group, transposed != swapped
        case _:
            return None


class _Call:
    """One evaluation: the narrow matrices found so far."""

    def __init__(
        self,
        recipe: Recipe,
        weights: Mapping[str, Tensor],
        device: torch.device,
        constants: dict[tuple[Hashable, torch.device], Tensor],
    ) -> None:
        self._recipe, self._weights, self._device, self._constants = recipe, weights, device, constants
        self._rows: dict[int, Tensor] = {}

    def run(self, places: Sequence[int]) -> None:
        if isinstance(self._recipe.steps[places[0]].how, Linear | Kernel):
            self._products(places)
        else:
            for place in places:
                self._rows[place] = self._step(place)

    # --- products with weights ----------------------------------------------------------------------------------

    def _products(self, places: Sequence[int]) -> None:
        """X W for all X that meet one weight at this time."""
        weight, turned = self._matrix(self._recipe.steps[places[0]].how)
        inputs: dict[Hashable, Tensor] = {}
        wanted: dict[int, tuple[Hashable, slice]] = {}
        for place in places:
            how, (part,), _, _ = self._recipe.steps[place]
            assert isinstance(how, Linear | Kernel)
            taps = weight.shape[1] // (how.rows if turned else how.columns)  # 1 for a matrix
            offset = how.offset if isinstance(how, Kernel) else 0
            if isinstance(self._recipe.steps[part].how, Everything):
                block = weight[:, offset::taps]
                self._rows[place] = (block.mT if turned else block).to(self._device, torch.float64)
            elif turned:
                wanted[place] = (part, offset), slice(None)
                if (part, offset) not in inputs:
                    X = self._rows[part]
                    inputs[part, offset] = _embedded(X, weight.shape[1], offset, taps) if taps > 1 else X
            else:  # all taps of a kernel come out of one product
                wanted[place] = part, slice(offset, None, taps)
                inputs[part] = self._rows[part]
        if inputs:
            found = dict(zip(inputs, self._times(list(inputs.values()), weight.mT if turned else weight), strict=True))
            for place, (key, columns) in wanted.items():
                self._rows[place] = found[key][:, columns]

    def _matrix(self, how: How) -> tuple[Tensor, bool]:
        """A weight as a matrix, and whether rows meet it turned around (X @ Wᵀ)."""
        if isinstance(how, Linear):
            stored = self._weights[self._recipe.names[how.name]]
            return stored.reshape(-1, how.columns if how.transposed else how.rows), not how.transposed
        assert isinstance(how, Kernel)
        stored = self._weights[self._recipe.names[how.name]]
        share = len(stored) // how.groups
        block = stored[how.group * share : (how.group + 1) * share]
        return block.reshape(share, -1), how.transposed == how.swapped

    def _times(self, inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
        """The products of narrow matrices with a weight, which is read once."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        X = torch.cat(list(inputs))
        # Each row at its own scale: a long chain would leave the range of float32.
        scale = X.norm(dim=1, keepdim=True)
        X = (X / torch.where(scale > 0, scale, 1.0)).to(weight.device, dtype)
        if weight.dtype == dtype:
            Y = times_columns(X, weight)
        else:
            Y = torch.cat([X @ part.to(dtype) for part in weight.split(_CHUNK, dim=1)], dim=1)
        Y = Y.to(self._device, torch.float64) * scale
        return list(Y.split([len(rows) for rows in inputs]))

    # --- everything else ----------------------------------------------------------------------------------------

    def _step(self, place: int) -> Tensor:
        step = self._recipe.steps[place]
        below = [self._rows[part] for part in step.parts]
        match step.how:
            case Everything(width=width):
                return self._constant(("everything", width), torch.eye, width)
            case Contrasts(width=width):
                return self._constant(("contrasts", width), _contrasts, width)
            case Stored(name=name, width=width):
                return self._parameter(name).reshape(-1, width)
            case Mixed(rows=rows):
                return self._constant(("mixed", rows, len(below[0])), _drawn, rows, len(below[0])) @ below[0]
            case Beside(before=before, after=after):
                outer = self._constant(("everything", before), torch.eye, before)
                inner = self._constant(("everything", after), torch.eye, after)
                return torch.kron(outer, torch.kron(below[0].contiguous(), inner))
            case Sum():
                return sum(below[1:], start=below[0])
            case Map():
                return self._mapped(step.how, below[0])

    def _mapped(self, how: Map, X: Tensor) -> Tensor:
        match how:
            case Row(name=name):
                return X * self._parameter(name).reshape(1, -1)
            case Diagonal(name=name, inverted=inverted):
                entries = self._parameter(name).reshape(-1)
                return X / entries if inverted else X * entries
            case Scale(factor=factor):
                return X * factor
            case Select(columns=columns, start=start, step=step):
                return X[:, start : start + step * columns : step]
            case Embed(columns=columns, start=start, step=step):
                return _embedded(X, columns, start, step)
            case Centre():
                return X - X.mean(dim=1, keepdim=True)
            case Total():
                return X.sum(dim=1, keepdim=True)
            case Tile(rows=rows, columns=columns, inner=inner):
                return X.repeat_interleave(inner, dim=1).repeat(1, columns // (rows * inner))
        raise TypeError(f"no basis is known through a {type(how).__name__}; give its space no generators")

    def _parameter(self, name: str) -> Tensor:
        return self._weights[self._recipe.names[name]].to(self._device, torch.float64)

    def _constant(self, key: Hashable, make: Callable[..., Tensor], *sizes: int) -> Tensor:
        """A matrix that no weight enters, kept from call to call."""
        kept = self._constants.get((key, self._device))
        if kept is None:
            kept = make(*sizes, dtype=torch.float64).to(self._device)
            self._constants[key, self._device] = kept
        return kept

    # --- bases --------------------------------------------------------------------------------------------------

    def basis(self, output: Output) -> Tensor:
        """Orthonormal columns (width × columns) whose span holds the rows of all parts."""
        rows = torch.cat([self._rows[part] for part in output.parts])
        scale = rows.norm(dim=1, keepdim=True)
        return orthonormal(rows / torch.where(scale > 0, scale, 1.0), output.columns)


def orthonormal(rows: Tensor, columns: int) -> Tensor:
    """Orthonormal columns (width × columns) whose span holds rows of no higher rank.

    Householder's QR spans every row, however the others are scaled, and gives orthonormal columns whatever the rank.
    """
    if len(rows) > columns:
        if len(rows) > rows.shape[1]:
            rows = torch.linalg.qr(rows, mode="r").R
        Q, R = torch.linalg.qr(rows.mT)
        U, _, _ = torch.linalg.svd(torch.nan_to_num(R))  # it would raise where a weight is not finite
        basis: Tensor = Q @ U[:, :columns]
    else:
        basis = torch.linalg.qr(rows.mT).Q
    return basis


def _embedded(X: Tensor, columns: int, start: int, step: int) -> Tensor:
    wide = X.new_zeros(len(X), columns)
    wide[:, start : start + step * X.shape[1] : step] = X
    return wide


def _contrasts(width: int, dtype: torch.dtype) -> Tensor:
    """Rows k = 1, 2, …: k equal entries, then one that makes the sum zero (Helmert)."""
    k = torch.arange(1, width, dtype=dtype).unsqueeze(1)
    entries = torch.arange(width).unsqueeze(0)
    return torch.where(entries < k, 1.0, torch.where(entries == k, -k, 0.0)) / (k * (k + 1)).sqrt()


def _drawn(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(0))
