"""A language model of 11 million parameters is neither refused nor wrong."""

from __future__ import annotations

import pytest
import torch

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.operators.hessian import hessian
from zoo.table import MEMBERS
from zoo.truth import Truth


@pytest.mark.slow
def test_the_largest_eigenvalue_of_a_gpt_is_right() -> None:
    member = MEMBERS["gpt_11m"]
    truth, operator = Truth(member), hessian(member.objective())
    top = measure_spectrum(operator, top=1, rel=0.05, max_products=24, quantities=("top",)).top
    assert top is not None
    one, v = top.estimate(0), top.vectors[:, 0].double()
    image = truth.product(v)
    assert one.low <= float(v @ image) <= one.high
    assert float((image - one.value * v).norm()) <= float(top.residuals[0]) + 1e-4 * abs(one.value)
    product = (operator @ v).double()
    assert torch.allclose(product, image, atol=1e-4 * float(image.norm()))
