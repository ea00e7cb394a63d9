from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.energy import energies

SHAPE = (5, 7)


def moments(gradients: list[Tensor], beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    m, v = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for g in gradients:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
    steps = len(gradients)
    return m / (1 - beta1**steps), v / (1 - beta2**steps)


def test_each_sum_is_the_one_of_its_formula_entry_by_entry() -> None:
    m, g, W, O = (gaussian(*SHAPE, seed=s) for s in range(4))
    v, eps = gaussian(*SHAPE, seed=4) ** 2, 0.01
    found = energies(m, v, eps, gradient=g, update=W, orthogonal=O)
    rows = zip(*(t.flatten().tolist() for t in (m, v, g, W, O)), strict=True)
    expected = dict.fromkeys(found, 0.0)
    for m_i, v_i, g_i, w_i, o_i in rows:
        root = math.sqrt(v_i) + eps
        expected["energy"] += (m_i / root) ** 2
        expected["natural_energy"] += m_i**2 * v_i / root**2
        expected["gradient_energy"] += g_i**2 / root
        expected["update_energy"] += w_i**2 * v_i
        expected["second_moment_sum"] += v_i
        expected["alignment"] += o_i * m_i / root
    expected["energy"] = math.sqrt(expected["energy"])
    expected["energy_rms"] = expected["energy"] / math.sqrt(35)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-12)
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in found.values())


@pytest.mark.parametrize("value", [3.0, -1e-4])
def test_a_constant_gradient_has_an_energy_rms_of_one(value: float) -> None:
    g = torch.full(SHAPE, value, dtype=torch.float64)
    m, v = moments([g] * 7, 0.9, 0.999)
    found = energies(m, v, 0.0, gradient=g, update=g)
    assert float(found["energy_rms"]) == pytest.approx(1.0, abs=1e-12)
    assert float(found["energy"]) == pytest.approx(math.sqrt(35))


@pytest.mark.parametrize("beta1", [0.9, 0.5])
def test_white_noise_has_the_energy_rms_of_the_first_moment_alone(beta1: float) -> None:
    gradients = [gaussian(100, 100, seed=s) for s in range(1000)]
    m, v = moments(gradients, beta1, 0.999)
    found = energies(m, v, 0.0, gradient=gradients[-1], update=m)
    # 1e4 entries, squares spread by sqrt 2: 0.7 % of the value is one standard error; v-hat adds 0.1 %
    assert float(found["energy_rms"]) == pytest.approx(math.sqrt((1 - beta1) / (1 + beta1)), rel=0.03)


def test_the_first_step_has_the_energy_of_a_matrix_of_signs() -> None:
    g = gaussian(*SHAPE)
    assert float(energies(g, g * g, 0.0, gradient=g, update=g)["energy"]) == pytest.approx(math.sqrt(35))


def test_alignment_with_the_polar_factor_is_the_nuclear_norm() -> None:
    m, v = gaussian(*SHAPE), gaussian(*SHAPE, seed=1) ** 2 + 0.1
    U, s, Vh = torch.linalg.svd(m / v.sqrt(), full_matrices=False)
    found = energies(m, v, 0.0, gradient=m, update=m, orthogonal=U @ Vh)
    assert float(found["alignment"]) == pytest.approx(float(s.sum()), rel=1e-12)
    assert "alignment" not in energies(m, v, 0.0, gradient=m, update=m)


def test_a_whitened_momentum_at_hand_gives_the_same_numbers_and_stays_as_it_was() -> None:
    m, v, eps = gaussian(*SHAPE), gaussian(*SHAPE, seed=1) ** 2, 1e-8
    A = m / (v.sqrt() + eps)
    kept = [t.clone() for t in (m, v, A)]
    fresh, reused = (energies(m, v, eps, gradient=m, update=m, orthogonal=A, whitened=w) for w in (None, A))
    for name, value in fresh.items():
        assert float(value) == pytest.approx(float(reused[name]), rel=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(kept, (m, v, A), strict=True))


def test_natural_energy_is_the_squared_momentum_where_eps_is_small() -> None:
    m, v = gaussian(*SHAPE), gaussian(*SHAPE, seed=1) ** 2 + 0.1
    found = energies(m, v, 1e-12, gradient=m, update=m)
    assert float(found["natural_energy"]) == pytest.approx(float((m * m).sum()), rel=1e-10)


def test_the_scale_of_the_loss_drops_out_of_the_energy_alone() -> None:
    m, v, c = gaussian(*SHAPE), gaussian(*SHAPE, seed=1) ** 2, 1e-3
    one = energies(m, v, 0.0, gradient=m, update=m, orthogonal=m)
    other = energies(c * m, c * c * v, 0.0, gradient=c * m, update=m, orthogonal=m)
    powers = {"energy": 0, "energy_rms": 0, "alignment": 0, "gradient_energy": 1}
    for name, value in one.items():
        assert float(other[name]) == pytest.approx(c ** powers.get(name, 2) * float(value), rel=1e-10)


def test_a_million_equal_float32_entries_are_added_without_drift() -> None:
    g = torch.full((1000, 1000), 0.1)
    found = energies(g, g * g, 0.0, gradient=g, update=g)
    assert float(found["energy"]) == pytest.approx(1000.0, rel=1e-6)
    assert float(found["second_moment_sum"]) == pytest.approx(1e4, rel=1e-6)


def test_sixteen_bit_tensors_are_summed_in_float32() -> None:
    g = torch.ones(100, 100, dtype=torch.bfloat16)
    assert float(energies(g, g, 0.0, gradient=g, update=g)["second_moment_sum"]) == 10000.0


def test_entries_never_seen_add_nothing() -> None:
    zero = torch.zeros(SHAPE)
    found = energies(zero, zero, 1e-8, gradient=zero, update=zero)
    assert {float(value) for value in found.values()} == {0.0}


@pytest.mark.parametrize("name", ["m_hat", "gradient", "update", "orthogonal", "whitened"])
def test_a_tensor_of_another_shape_is_refused_by_name(name: str) -> None:
    tensors = dict.fromkeys(["m_hat", "gradient", "update", "orthogonal", "whitened"], torch.ones(SHAPE))
    tensors[name] = torch.ones(1)
    with pytest.raises(ProbeError, match=rf"{name} must have the shape \(5, 7\) of v_hat, got \(1,\)"):
        energies(tensors.pop("m_hat"), torch.ones(SHAPE), 0.0, **tensors)  # type: ignore[arg-type]


def test_a_tensor_without_entries_is_refused() -> None:
    empty = torch.ones(0, 3)
    with pytest.raises(ProbeError, match=r"v_hat must not be empty, got shape \(0, 3\)"):
        energies(empty, empty, 0.0, gradient=empty, update=empty)
