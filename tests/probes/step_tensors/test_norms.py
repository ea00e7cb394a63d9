from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.norms import inner, inners, norm, norms, pairs, ratios

TENSORS = [gaussian(3, 4), gaussian(5, seed=1), gaussian(2, 2, 2, seed=2), gaussian(seed=3)]


def test_a_list_is_one_long_vector() -> None:
    long = torch.cat([tensor.flatten() for tensor in TENSORS])
    other = [tensor + 1 for tensor in TENSORS]
    assert float(norm(TENSORS)) == pytest.approx(float(long.norm()), rel=1e-14)
    assert float(inner(TENSORS, other)) == pytest.approx(float(long @ (long + 1)), rel=1e-13)
    assert float(norm(long)) == pytest.approx(float(long.norm()), rel=1e-14)


def test_norms_come_one_for_each_tensor_in_order() -> None:
    mixed = [torch.full((3,), 2.0), gaussian(300, 300), torch.zeros(2, 2), torch.ones(4, dtype=torch.bfloat16)]
    found = norms(mixed)
    assert [float(value) for value in found] == pytest.approx(
        [math.sqrt(12), float(mixed[1].norm()), 0.0, 2.0], rel=1e-7
    )
    assert {(value.ndim, value.dtype) for value in found} == {(0, torch.float64)}
    assert norms([]) == []


@pytest.mark.parametrize("size", [65536, 65537, 10**6])
def test_a_long_float32_tensor_is_not_added_up_with_a_drift(size: int) -> None:
    tensor = torch.full((size,), 0.1)
    exact = float(tensor[0].double()) * math.sqrt(size)
    assert float(norm(tensor)) == pytest.approx(exact, rel=1e-4 if size == 65536 else 1e-11)
    assert float(inner(tensor, tensor)) == pytest.approx(exact**2, rel=1e-6)


@given(st.floats(1e-6, 1e6), st.integers(0, 100))
def test_ratios_follow_the_scale_of_the_step_and_nothing_else(scale: float, seed: int) -> None:
    W, step = gaussian(4, 3, seed=seed), gaussian(4, 3, seed=seed + 1)
    plain, grown, both = ratios(norms([step, scale * step, scale * step]), norms([W, W, scale * W])).tolist()
    assert plain == pytest.approx(float(step.norm() / W.norm()), rel=1e-12)
    assert grown == pytest.approx(scale * plain, rel=1e-12)
    assert both == pytest.approx(plain, rel=1e-12)


def test_inner_products_come_one_for_each_tensor_in_order() -> None:
    other = [tensor + 1 for tensor in TENSORS]
    found = inners(TENSORS, other)
    assert (found.shape, found.dtype) == ((len(TENSORS),), torch.float64)
    assert found.tolist() == pytest.approx([float((a * a + a).sum()) for a in TENSORS], rel=1e-13)


def test_a_zero_weight_has_a_gap_and_a_zero_step_has_not() -> None:
    zero, one = torch.zeros(()), torch.ones(())
    found = ratios([one, zero, zero], [zero, zero, one])
    assert torch.isnan(found[:2]).all()
    assert float(found[2]) == 0.0


def test_parameters_that_need_gradients_build_no_graph() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    found = [
        norm(parameter),
        *norms([parameter]),
        inner(parameter, parameter),
        ratios(norms([parameter]), norms([parameter])),
    ]
    assert not any(value.requires_grad for value in found)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ProbeError, match="at least 1 tensor is required, got 0"):
        norm([])


def test_different_shapes_are_refused_not_broadcast() -> None:
    with pytest.raises(ProbeError, match=r"shapes must match, got \[\(3,\)\] and \[\(1,\)\]"):
        inner(torch.ones(3), torch.ones(1))
    with pytest.raises(ProbeError, match=r"pass the same parameters on both sides"):
        pairs([torch.ones(3)], [torch.ones(3), torch.ones(2)])
