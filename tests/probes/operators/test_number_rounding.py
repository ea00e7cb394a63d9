"""Rounding of exact numbers: their intervals are never of width 0 and contain the numbers in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.sharpness.alignment import gradient_alignment
from lossscope.probes.sharpness.invariant import log_fisher_rao
from lossscope.probes.sharpness.logits import logit_scale

Ends = tuple[float, float, float]  # low, value, high


def made(dtype: torch.dtype, scale: float) -> Objective:
    """Return the loss of a network whose logits are large, so that float32 numbers are rounded visibly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 4))
        x, y = torch.randn(200, 5), torch.randint(0, 4, (200,))
    with torch.no_grad():
        net[2].weight.mul_(scale)
    return Objective(net.to(dtype), CrossEntropy(), [(x[:120].to(dtype), y[:120]), (x[120:].to(dtype), y[120:])])


def loss(objective: Objective) -> Ends:
    (row,) = Panel(MeasurementTarget(objective), SolverOptions(0.1, 0.1, 8)).loss().probes
    return row["low"], row["value"], row["high"]


def cosine(objective: Objective) -> Ends:
    top = measure_spectrum(hessian(objective), top=1, quantities=("top",), rel=0.2).top
    assert top is not None
    found = gradient_alignment(objective, top).cosine
    return found.low, found.value, found.high


def fisher_rao(objective: Objective) -> Ends:
    found = log_fisher_rao(objective)
    return found.low, found.value, found.high


def logit_norm(objective: Objective) -> Ends:
    found = logit_scale(objective).norm
    return found.low, found.value, found.high


def margin(objective: Objective) -> Ends:
    found = logit_scale(objective).margin
    return found.low, found.value, found.high


MEASURES: dict[str, Callable[[Objective], Ends]] = {
    "loss": loss,
    "cosine": cosine,
    "log Fisher-Rao": fisher_rao,
    "logit norm": logit_norm,
    "margin": margin,
}


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("name", MEASURES)
def test_an_exact_number_has_the_interval_of_its_rounding(name: str, scale: float) -> None:
    objective = made(torch.float32, scale)
    low, value, high = MEASURES[name](objective)
    _, truth, _ = MEASURES[name](objective.in_double())
    assert low <= truth <= high
    assert low < value < high
    assert high - low < 1e-3 * abs(value)
    low, value, high = MEASURES[name](made(torch.float64, scale))
    assert low < value < high
    assert high - low < 1e-11 * abs(value)


def test_without_a_comparison_the_rounding_is_assumed() -> None:
    objective = made(torch.float32, 1.0)

    def fails(other: Objective) -> tuple[float]:
        raise RuntimeError("no copy in another dtype")

    assert number_rounding(objective, fails, (2.0,)) == [100 * torch.finfo(torch.float32).eps * 2.0]
    assert number_rounding(objective, fails, (2.0,), (5.0,)) == [100 * torch.finfo(torch.float32).eps * 5.0]


def test_where_the_float64_copy_takes_differences_their_error_is_in_the_bound() -> None:
    class Checkpointed(nn.Module):  # computed again in the second backward pass, with the float32 parameters
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(checkpoint(self.first, x, use_reentrant=False)))

    torch.manual_seed(0)
    objective = Objective(Checkpointed(), CrossEntropy(), [(torch.randn(9, 4), torch.arange(9) % 3)])
    operator, v = hessian(objective), torch.randn(objective.size)
    error = operator.product_error(v[:, None], (operator @ v)[:, None])
    assert error is not None
    reference = operator.reference()
    assert reference is not None
    again = reference.operator
    assert torch.isfinite(again @ v.double()).all()
    assert again.method == "differences"
    assert float(error.slack[0]) > 1e-12 * float((operator @ v).norm())
    assert float(error.norms[0]) > float(error.difference.norm())
    assert float(error.forms(v[:, None].double())[0]) >= float(error.slack[0]) * float(v.norm())
