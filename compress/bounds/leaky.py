"""How nearly low-rank an elementwise activation leaves a low-rank matrix.

φ_α is the Leaky-ReLU of slope α in [0, 1]: φ_α(z) = z where z > 0, else αz. Equation numbers are those of Baker
et al. 2024 (arXiv 2402.06751). Results are float64, on the CPU. Proofs: `docs/bounds.md`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SlopeBound:
    """Norms of the slope matrix D (M × N): D_ij = 1 where Z_ij > 0, else α (eqs. 5 to 8).

    Attributes:
        column_negative, column_positive: N₋ and N₊, the entries α and 1 in the column of greatest norm.
        row_negative, row_positive: M₋ and M₊, the same for the row of greatest norm.
        column_norm: c₁ = √(N₋α² + N₊).
        row_norm: r₁ = √(M₋α² + M₊).
    """

    column_negative: int
    column_positive: int
    row_negative: int
    row_positive: int
    column_norm: float
    row_norm: float

    @property
    def factor(self) -> float:
        """min{c₁, r₁}: σ₁(D∘X) ≤ factor · σ₁(X) for every X (Schur; Horn & Johnson)."""
        return min(self.column_norm, self.row_norm)


@dataclass(frozen=True)
class NumericalThreshold:
    """The paper's prediction of how many singular values of D∘X count.

    Attributes:
        threshold: ε·min{c₁, r₁}·σ₁(X), in units of X. An upper limit on ε·σ₁(D∘X), not its value.
        count: singular values of D∘X above `threshold`; therefore at most `epsilon_count`.
        epsilon_count: singular values of D∘X above ε·σ₁(D∘X) (eq. 4), decomposed in float64.
    """

    threshold: float
    count: int
    epsilon_count: int


def slope_bound(z: Tensor, alpha: float) -> SlopeBound:
    """Count the slopes that φ_α has on Z (M × N), and bound what they add to σ₁ (eqs. 5 to 8).

    Raises:
        ValueError: alpha outside [0, 1], or z not a finite floating-point matrix.
    """
    _check(alpha, z=z)
    rows, columns = z.shape if z.numel() else (0, 0)
    # the more slopes of 1, the greater the norm
    in_column, in_row = (int((z > 0).sum(axis).max()) if z.numel() else 0 for axis in (0, 1))
    return SlopeBound(
        column_negative=rows - in_column,
        column_positive=in_column,
        row_negative=columns - in_row,
        row_positive=in_row,
        column_norm=math.sqrt((rows - in_column) * alpha**2 + in_column),
        row_norm=math.sqrt((columns - in_row) * alpha**2 + in_row),
    )


def activation_threshold(z: Tensor, alpha: float, *, epsilon: float | None = None) -> NumericalThreshold:
    """Predict which singular values of φ_α(Z) count: those above ε·min{c₁, r₁}·σ₁(Z) (eq. 9).

    Z, M × N, holds pre-activations. ε is the unit of roundoff, that of z's type unless given.

    Raises:
        ValueError: alpha outside [0, 1], or z not a finite floating-point matrix.
    """
    return derivative_threshold(z, z, alpha, epsilon=epsilon)


def derivative_threshold(
    z: Tensor, adjoint: Tensor, alpha: float, *, epsilon: float | None = None
) -> NumericalThreshold:
    """Predict which singular values of φ_α'(Z)∘X count: those above ε·min{c₁, r₁}·σ₁(X) (eqs. 13 and 14).

    Z, M × N, holds pre-activations, and X = `adjoint`, M × N, the adjoints of φ_α's output. ε is the unit of
    roundoff, that of the adjoint's type unless given.

    Raises:
        ValueError: alpha outside [0, 1], z or adjoint not a finite floating-point matrix, or shapes that differ.
    """
    _check(alpha, z=z, adjoint=adjoint)
    if z.shape != adjoint.shape:
        raise ValueError(f"z and adjoint need one shape, got {tuple(z.shape)} and {tuple(adjoint.shape)}")
    if not z.numel():
        return NumericalThreshold(0.0, 0, 0)
    epsilon = torch.finfo(adjoint.dtype).eps if epsilon is None else epsilon
    largest = float(torch.linalg.svdvals(_float64(adjoint))[0])
    after = torch.linalg.svdvals(_float64(torch.where(z > 0, adjoint, alpha * adjoint)))
    threshold = epsilon * slope_bound(z, alpha).factor * largest
    return NumericalThreshold(threshold, int((after > threshold).sum()), int((after > epsilon * after[0]).sum()))


def leaky_singular_value_bounds(matrix: Tensor, alpha: float, *, strict: bool = True) -> tuple[Tensor, Tensor]:
    """Enclose the Leaky-ReLU singular values s_1 ≥ s_2 ≥ … of A = `matrix`, m × n (eqs. 10 and 11).

    s_k = min over L of max over ‖x‖ ≤ 1 of ‖φ_α(Ax) − φ_α(Lx)‖, with rank(L) < k (`strict`, the paper's supplement)
    or rank(L) ≤ k (its main text). Then √((1+α²)/2)·σ_j ≤ s_k ≤ σ_j, j = k if strict and k + 1 if not. The
    paper's lemma s_k ≤ σ_k holds for both, but fits the strict one: there s_k = σ_k at α = 1.

    Returns:
        Lower and upper limits on s_1 … s_min(m, n).

    Raises:
        ValueError: alpha outside [0, 1], or not a finite floating-point matrix.
    """
    _check(alpha, matrix=matrix)
    upper = torch.linalg.svdvals(_float64(matrix))
    if not strict:
        upper = torch.cat([upper, upper.new_zeros(1)])[1:]
    return math.sqrt((1 + alpha**2) / 2) * upper, upper


def truncation_gap(matrix: Tensor, alpha: float, rank: int, x: Tensor) -> Tensor:
    """‖φ_α(Ax) − φ_α(Lx)‖ for each row x of the inputs, L the truncated SVD of A at a rank from 0 to min(m, n).

    A = `matrix`, m × n; inputs count × n, of any norm. At most σ_{rank+1}(A)·‖x‖, so that s_k ≤ σ_k (eq. 11).

    Raises:
        ValueError: alpha outside [0, 1], matrix or x not a finite floating-point matrix, another width of x, or
            a rank out of range.
    """
    _check(alpha, matrix=matrix, x=x)
    if x.shape[1] != matrix.shape[1]:
        raise ValueError(f"x holds inputs in rows, {matrix.shape[1]} wide for this matrix, got {tuple(x.shape)}")
    if not 0 <= rank <= min(matrix.shape):
        raise ValueError(f"rank must lie from 0 to {min(matrix.shape)} for shape {tuple(matrix.shape)}, got {rank}")
    exact, inputs = _float64(matrix), _float64(x)
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    full, cut = inputs @ exact.T, inputs @ ((u[:, :rank] * s[:rank]) @ vh[:rank]).T
    # count × m
    difference = torch.where(full > 0, full, alpha * full) - torch.where(cut > 0, cut, alpha * cut)
    return difference.square().sum(1).sqrt()


def relative_tail(alpha: float, positive_share: float | None = None) -> float:
    """Certificate: what φ_α(Z) holds beyond rank(Z) is at most this share of ‖φ_α(Z)‖_F.

    Free of data, (1−α)/(1+α); some Z attain it (α = ½, ⅓). With p, the share of ‖Z‖_F² in positive entries,
    (1−α)·√(p(1−p)) / √(p + α²(1−p)), left by the best multiple c = p + α(1−p) of Z; a certificate for the Z that p
    was measured on. Both hold for D∘X too, whatever 0/1 pattern puts the slopes 1 and α; p is then the share of
    ‖X‖_F² under slope 1.

    Raises:
        ValueError: alpha or positive_share outside [0, 1].
    """
    _check(alpha)
    if positive_share is None:
        return (1 - alpha) / (1 + alpha)
    p = positive_share
    if not 0 <= p <= 1:
        raise ValueError(f"positive_share is a share of ‖Z‖², from 0 to 1, got {p}; leave it out where it is unknown")
    energy = p + alpha**2 * (1 - p)
    return (1 - alpha) * math.sqrt(p * (1 - p) / energy) if energy > 0 else 0.0


def typical_tail(alpha: float) -> float:
    """What cZ leaves of φ_α(Z) when Z is symmetric, (1−α)/√(2(1+α²)): **not** a certificate, some Z leave more.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    return relative_tail(alpha, 0.5)


def carried_tail(tails: Iterable[float], *, error: float = 0.0) -> float:
    """Error of a linear stand-in behind several activations: (1+e)·Π(1+ε_l) − 1.

    Layer l is Z_l = A_{l−1}W_lᵀ + 1b_lᵀ and A_l = φ_l(Z_l), with φ_l(0) = 0 and 1-Lipschitz, R rows. The stand-in is
    the same network with each φ_l replaced by a multiple c_l, so its activations lie in the space that the linear
    network has. The result is relative to the norm budget N_l = ‖W_l‖₂·N_{l−1} + ‖b_l‖·√R with N_0 ≥ ‖A_0‖_F, and
    **not** to ‖Z_l‖ or ‖A_l‖: a layer may cancel what is low-rank. It is a certificate where every tail is one.

    Args:
        tails: ε_l of each activation, relative to ‖φ_l(Z)‖_F and valid for every Z.
        error: relative error e of A_0, in units of N_0.

    Raises:
        ValueError: a tail or the error negative or not finite.
    """
    return (1 + _size("error", error)) * math.prod(1 + _size("every tail", tail) for tail in tails) - 1


def leaky_carried_tail(alphas: Iterable[float], *, error: float = 0.0) -> float:
    """The same certificate for Leaky-ReLUs, tighter: 1 − (1−e)·Π(1+α_l)/2, with c_l = (1+α_l)/2.

    Relative to the norm budget of `carried_tail`. Masks of the backward pass (Δ_{l−1} = D_l∘(Δ_l W_l)) count alike.
    A gradient ΔᵀA takes the slopes of both passes, relative to N_Δ·N_A and with the error that A starts with: what it
    holds beyond the rank that it would have in the linear network is at most this. Δ must start without error.

    Args:
        alphas: slope of each Leaky-ReLU passed.
        error: relative error e of what enters the first, in units of its budget.

    Raises:
        ValueError: a slope outside [0, 1], or the error negative or not finite.
    """
    kept = 1 - _size("error", error)
    for alpha in alphas:
        _check(alpha)
        kept *= (1 + alpha) / 2
    return 1 - kept


def calibrated_tail(function: Elementwise, derivative: bool | Elementwise = False, *, offset: bool = False) -> float:
    """Calibrated, **not proven**: what cZ leaves of φ(Z), as a share in [0, 1], when Z is standard normal.

    min over c of ‖φ(Z) − cZ‖/‖φ(Z)‖, and for the derivative's mask m = φ'(Z), with X independent of Z,
    min over c of ‖m∘X − cX‖/‖m∘X‖ = √(1 − E[m]²/E[m²]). By quadrature, without sampling.

    Args:
        function: elementwise φ, given a float64 tensor.
        derivative: True for the mask, by autograd; or φ' itself.
        offset: fit cZ + d, of rank one more (the constant direction); it suits φ(0) ≠ 0.

    Raises:
        ValueError: the function changes the shape or gives NaN or infinity; or both derivative and offset.
    """
    if derivative is not False and offset:
        raise ValueError("offset fits φ(Z), not a mask that scales X: leave out offset or derivative")
    z, weight = _normal_quadrature()
    value = (function(z.clone()) if derivative is False else _slopes(function, derivative, z)).detach()
    if value.shape != z.shape or not bool(torch.isfinite(value).all()):
        found = "NaN or infinity" if value.shape == z.shape else f"shape {tuple(value.shape)}"
        raise ValueError(f"an elementwise, finite function is needed: {len(z)} numbers within ±10 gave {found}")
    one = torch.ones_like(z)
    # orthonormal under the weights, as Z has mean 0 and variance 1
    basis = [one] if derivative is not False else [z, one] if offset else [z]
    rest = value
    for direction in basis:
        rest = rest - (weight * rest * direction).sum() * direction
    energy = float((weight * value.square()).sum())
    return min(1.0, math.sqrt(float((weight * rest.square()).sum()) / energy)) if energy > 0 else 0.0


def _slopes(function: Elementwise, derivative: bool | Elementwise, z: Tensor) -> Tensor:
    if not isinstance(derivative, bool):
        return derivative(z.clone())
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        value = function(leaf.clone())  # a copy, so that φ may work in place
        return torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else torch.zeros_like(z)


def _normal_quadrature() -> tuple[Tensor, Tensor]:
    """Nodes z and weights for E over a standard normal: Gauss–Legendre of 8 nodes on panels of 1/8 over ±10.

    Kinks at multiples of 1/8 (ReLU 0, hardtanh ±1, hardswish ±3, relu6 6) fall between panels, so that piecewise
    smooth functions come out to roundoff. A Gauss–Hermite rule would be off by up to the weight of a node.
    """
    order = torch.arange(1, 8, dtype=torch.float64, device="cpu")
    off_diagonal = order / (4 * order.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    centres = torch.arange(160, dtype=torch.float64, device="cpu") / 8 - 10 + 1 / 16
    # panels × nodes, flattened
    z = (centres[:, None] + nodes / 16).flatten()
    weight = vectors[0].square().repeat(160) * torch.exp(-z.square() / 2)
    return z, weight / weight.sum()


def _float64(matrix: Tensor) -> Tensor:
    return matrix.detach().to("cpu", torch.float64)


def _size(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is a relative size, finite and not negative, got {value}")
    return value


def _check(alpha: float, **matrices: Tensor) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the slope of a Leaky-ReLU below zero, from 0 (ReLU) to 1 (linear), got {alpha}")
    for name, matrix in matrices.items():
        if matrix.dim() != 2:
            raise ValueError(f"{name} needs two axes, got shape {tuple(matrix.shape)}; join some, as flatten does")
        if not matrix.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {matrix.dtype}; convert it with .double()")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{name} must be finite, this one holds NaN or infinity")
