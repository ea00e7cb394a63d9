"""Two dimensions: the shear turns exactly as fast as the gradient, because it has only one direction left."""

import torch
from matplotlib.figure import Figure

from lossscope.optimizer.ascent.shear import residual
from lossscope.probes import lagged_cosines

CURVATURES, LR, RADIUS, STEPS = torch.tensor([1.0, 0.3], dtype=torch.float64), 0.3, 0.05, 40

w = torch.tensor([1.0, -2.0], dtype=torch.float64)
gradients, shears = [], []
for _ in range(STEPS):
    g = CURVATURES * w  # of the loss sum(curvature * w^2) / 2
    adversarial = CURVATURES * (w + RADIUS * g / g.norm())
    gradients.append(g)
    shears.append(residual(adversarial, g))
    w = w - LR * g

lags = range(1, 11)
cos_g, cos_v = (lagged_cosines(x, x, tuple(lags)).values[1:] for x in (gradients, shears))
largest = abs(abs(cos_g) - abs(cos_v))[:, : STEPS - 10].max()
print(f"largest difference between |cos_v(k)| and |cos_g(k)| at lags 1 to 10: {largest:.1e}")
assert largest < 1e-6

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
axes.plot(lags, abs(cos_g[:, 0]), "o-", markersize=9, label="gradient")
axes.plot(lags, abs(cos_v[:, 0]), "x--", label="shear")
axes.set(
    xlabel="steps apart",
    ylabel="|cosine| to the first step",
    title="Two dimensions: shear and gradient turn equally fast",
)
axes.legend()
figure.savefig("shear_in_two_dimensions.png", dpi=150)
