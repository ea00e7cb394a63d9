"""Edge of stability: the stored shear points against the new one where the gradient oscillates most."""

import torch
from matplotlib.figure import Figure

from lossscope.optimizer.ascent.shear import residual
from lossscope.probes import lagged_cosines

CURVATURES, LR, RADIUS = torch.tensor([2.0, 1e-6], dtype=torch.float64), 1.0, 0.05  # lr times the first curvature is 2


def one_step(share: float) -> tuple[float, float]:
    """Return the cosines of gradient and shear one step apart, with `share` of the squared gradient along the edge."""
    g0 = torch.tensor([share**0.5, (1 - share) ** 0.5], dtype=torch.float64)
    w, gradients, shears = g0 / CURVATURES, [], []
    for _ in range(2):
        g = CURVATURES * w
        gradients.append(g)
        shears.append(residual(CURVATURES * (w + RADIUS * g / g.norm()), g))
        w = w - LR * g
    return tuple(float(lagged_cosines(x, x, (1,)).values[1, 0]) for x in (gradients, shears))


shares = torch.linspace(0.05, 0.95, 19).tolist()
cos_g, cos_v = zip(*map(one_step, shares), strict=True)
assert all(abs(v - (2 * a - 1)) < 1e-4 and abs(g + v) < 1e-4 for a, g, v in zip(shares, cos_g, cos_v, strict=True))
print("cos_v(1) = -cos_g(1) = 2 a^2 - 1 holds to 1e-4 for every share a^2 of the gradient along the edge")

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
axes.plot(shares, cos_g, "o-", label="gradient")
axes.plot(shares, cos_v, "x-", label="shear")
axes.axhline(0, color="0.7", linewidth=0.8)
axes.set(xlabel="share of the squared gradient along the edge, a²", ylabel="cosine, one step apart")
axes.set_title("Edge of stability: 2a² - 1 for the shear, 1 - 2a² for the gradient")
axes.legend()
figure.savefig("shear_at_the_edge.png", dpi=150)
