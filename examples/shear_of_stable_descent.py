"""Stable gradient descent on a log-uniform quadratic: the shear turns faster than the gradient."""

import torch
from matplotlib.figure import Figure

from lossscope.optimizer.ascent.shear import residual
from lossscope.probes import lagged_cosines

CURVATURES, LR, RADIUS, STEPS = torch.logspace(-3, 0, 200, dtype=torch.float64), 0.5, 0.05, 120

generator = torch.Generator().manual_seed(0)
w = torch.randn(200, generator=generator, dtype=torch.float64)
gradients, shears = [], []
for _ in range(STEPS):
    g = CURVATURES * w
    gradients.append(g)
    shears.append(residual(CURVATURES * (w + RADIUS * g / g.norm()), g))
    w = w - LR * g

lags = tuple(range(1, 61))
cos_g, cos_v = (lagged_cosines(x, x, lags).values[1:, 0] for x in (gradients, shears))
for lag in (5, 20, 50):
    print(f"{lag} steps apart: cosine of the gradient {cos_g[lag - 1]:.2f}, of the shear {cos_v[lag - 1]:.2f}")
assert all(cos_v < cos_g)

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
axes.plot(lags, cos_g, label="gradient")
axes.plot(lags, cos_v, label="shear")
axes.axhline(0, color="0.7", linewidth=0.8)
axes.set(xlabel="steps apart", ylabel="cosine to the first step", title="Stable descent on 200 log-uniform curvatures")
axes.legend()
figure.savefig("shear_of_stable_descent.png", dpi=150)
