"""Products with factors, by whatever library, and orthonormal bases of factors, on CPUs and as GPUs make them."""

import pytest
import torch

from compress.compressors.orthonormal import cholesky_qr, orthonormal
from compress.factor_products import expand, subtract, times_columns, times_rows

SHAPES = [(5, 7), (640, 700), (1300, 513)]
"""Below and above the size from which oneDNN multiplies."""


@pytest.fixture(params=[True, False], ids=["oneDNN", "without"])
def onednn(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr("compress.factor_products._ONEDNN", None)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 4, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_plain_multiplication(shape, columns, dtype):
    (m, n), limit = shape, 1e-5 if dtype == torch.float32 else 1e-13
    M, P, Q = torch.randn(m, n, dtype=dtype), torch.randn(columns, m, dtype=dtype), torch.randn(columns, n, dtype=dtype)
    exact = [tensor.to(torch.float64, copy=True) for tensor in (M, P, Q)]

    def near(found, true):
        assert found.dtype == dtype
        assert (found.double() - true).norm() <= limit * true.norm()

    near(times_rows(M, Q), exact[2] @ exact[0].mT)
    near(times_columns(P, M), exact[1] @ exact[0])
    kept = torch.full_like(M, 3.0)
    near(subtract(M, P, Q, out=kept), exact[0] - exact[1].mT @ exact[2])
    assert torch.equal(M.double(), exact[0])
    assert subtract(M, P, Q, out=M) is M
    near(M, exact[0] - exact[1].mT @ exact[2])
    assert expand(P, Q, out=M) is M
    near(M, exact[1].mT @ exact[2])


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_not_finite_comes_through(shape):
    M = torch.ones(shape)
    M[-1, -1] = torch.nan
    assert times_rows(M, torch.ones(2, shape[1]))[:, -1].isnan().all()
    assert times_columns(torch.ones(2, shape[0]), M)[:, -1].isnan().all()
    assert expand(torch.full((2, shape[0]), torch.nan), torch.ones(2, shape[1]), out=M).isnan().all()


def factors(trial, dtype):
    """Rows of any rank, zero rows, rows of very different length, and whole numbers."""
    generator = torch.Generator().manual_seed(trial)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    m = int(torch.randint(1, 100, (), generator=generator))
    columns = int(torch.randint(1, min(m, 24) + 1, (), generator=generator))
    rank = int(torch.randint(0, columns + 1, (), generator=generator))
    rows = normal(columns, rank) @ normal(rank, m) if trial % 3 else normal(columns, m)
    if trial % 5 == 0:
        rows *= torch.logspace(0, -12, columns, dtype=dtype).unsqueeze(1)
    return rows.round() if trial % 7 == 0 else rows


@pytest.mark.parametrize("basis_of", [orthonormal, cholesky_qr])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_projections_on_the_basis_give_the_factor_again(basis_of, dtype, limit):
    for trial in range(500):
        rows = factors(trial, dtype)
        basis = basis_of(rows[None])[0]
        assert (rows - (rows @ basis.mT) @ basis).norm() <= limit * rows.norm()
        assert basis.square().sum(dim=1).amax() <= 1 + limit


@pytest.mark.parametrize("basis_of", [orthonormal, cholesky_qr])
def test_generic_factors_get_orthonormal_bases(basis_of):
    rows = torch.randn(3, 20, 90, generator=torch.Generator().manual_seed(0))
    basis = basis_of(rows)
    assert torch.allclose(basis @ basis.mT, torch.eye(20).expand(3, 20, 20), atol=3e-6)


def test_a_factor_that_is_not_finite_spoils_itself_alone():
    rows = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    rows[1, 2, 3] = torch.inf
    basis = orthonormal(rows)
    assert basis[0].isfinite().all()
    assert basis[1].isnan().all()
