"""Curvature of the loss along the ray from the origin through the parameters."""

from __future__ import annotations

import time

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["theta_hessian_theta"]


def theta_hessian_theta(objective: Objective) -> Estimate:
    r"""The curvature :math:`\theta^\top H \theta` of the loss along its own parameters.

    It is the second derivative of :math:`L(s\theta)` by s at 1, where all parameters grow by one factor. Under a
    linear map T of the parameters that leaves the function alone, H becomes :math:`T^{-\top} H T^{-1}` and
    :math:`\theta` becomes :math:`T\theta`, so it does not change.

    Args:
        objective: The loss. Its trainable parameters are :math:`\theta`; frozen ones stand where they are.

    Returns:
        The number, exact on the fixed data, for one product.

    Raises:
        ProbeError: the loss or the product is not finite.

    Source:
        docs/measures/radial.md.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(3, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     theta_hessian_theta(objective).value
        18.0
    """
    begun = time.perf_counter()
    theta = objective.parameters()
    curvature = (hessian(objective) @ theta).double() @ theta.double()
    return exact_estimate(float(curvature), products=1, seconds=time.perf_counter() - begun)
