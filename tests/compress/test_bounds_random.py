"""Networks of every kind drawn at random: no measured rank may exceed its bound.

A share of what `benchmarks/bound_tightness.py` runs at night, and proof that the drawn networks find a fault.
"""

from dataclasses import replace

import pytest
from architectures import KINDS, draw
from examined import examine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from compress.bounds.rules.base import RULES, aten

NETWORKS = 6
"""Of each kind."""

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
# Shrinking a failure would take minutes: the network is printed as it was drawn, and can be built again.
SMALL = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=SLOW)


def checked(data: st.DataObject, kind: str) -> None:
    network = draw(lambda options: data.draw(st.sampled_from(options)), kind)
    violations = [matrix for matrix in examine(network, draws=1) if matrix.violated]
    assert not violations, f"{violations} of {network}"


@pytest.mark.parametrize("kind", KINDS)
@settings(SMALL, max_examples=NETWORKS)
@given(data=st.data())
def test_no_measured_rank_exceeds_its_bound(kind, data):
    checked(data, kind)


def test_a_planted_fault_is_found(monkeypatch):
    """LayerNorm's adjoint without the space of the normalised input: the mistake that is easiest to make."""
    norm, add = aten.layer_norm.default, "add"
    rule = RULES[norm]

    def backward(call, adjoint):
        with pytest.MonkeyPatch.context() as patch:  # the sum of both spaces: keep the first
            patch.setattr(call.ops, add, lambda values, shapes, shape, label: values[0])
            yield from list(rule.backward(call, adjoint))

    monkeypatch.setitem(RULES, norm, replace(rule, backward=backward))

    @settings(SMALL, max_examples=60, report_multiple_bugs=False)
    @given(data=st.data())
    def search(data):
        checked(data, "norm: layer")

    with pytest.raises(AssertionError, match=r"violated=True.*'kind': 'layer'"):
        search()
