"""PAC-Bayes sigma: the size of noise on all weights at which the mean loss has risen by a given amount."""

from __future__ import annotations

from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.noise import Noise
from lossscope.probes.sharpness.noise_radius import noise_radius, require_noise
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["pac_bayes_sigma"]


def pac_bayes_sigma(
    objective: Objective, *, rise: float = 0.1, draws: int = 32, rel: float = 0.01, seed: int = 0
) -> Estimate:
    r"""Find the noise :math:`\sigma` of one size on all weights at which the mean loss has risen by a given amount.

    .. math:: E_z L(\theta + \sigma z) - L(\theta) = \text{rise}, \qquad z \sim N(0, I)

    In a PAC-Bayes bound with a normal posterior of this width the term of flatness is :math:`1/\sigma^2`. At a minimum,
    for a small rise, :math:`\sigma = \sqrt{2 \, \text{rise} / \mathrm{tr} H}`. It is not invariant under a rescaling of
    weights: `basin_radius` is, where every weight has noise in units of itself. The same z serve at every noise level,
    so the mean over the draws is a continuous function of :math:`\sigma`, whose crossing is bracketed and found in
    :math:`\ln \sigma` by bisection and interpolation.

    Args:
        objective: The loss.
        rise: Rise of the loss, nats, above 0.
        draws: Number of random z, at least 16.
        rel: Relative accuracy at which the crossing of these draws is found, above 0 and below 1.
        seed: Seed of the draws, and of the bootstrap.

    Returns:
        The noise, in the unit of the weights, with the 95 % interval of a studentized bootstrap over the draws. Cost:
        `draws` losses for each of about five noise levels. The model is not written.

    Raises:
        ProbeError: An argument is out of range, the loss is not finite, its rounding is not small beside the rise, the
            parameters' dtype is too coarse for the noise, or it is not between 1e-4 and 10 times the root mean square
            of the weights.

    Source:
        Y. Jiang et al. (2020), Fantastic generalization measures and where to find them, arXiv:1912.02178, there with
        a rise of the training error.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = pac_bayes_sigma(objective, rise=0.04, draws=200)
        >>> found.low < 0.2 < found.high
        True
    """
    require_noise(rise, draws, rel)
    with objective.evaluating():
        return noise_radius(Noise(objective, draws, seed, relative=False), rise, rel)
