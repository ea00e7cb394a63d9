"""Spectral density of a classifier's Hessian: a bulk at zero, and about as many outliers as there are classes."""

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from lossscope import Objective, hessian, measure_spectrum
from lossscope.probes import CrossEntropy

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images[:1000], dtype=torch.float32) / 16, torch.tensor(labels[:1000])
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

operator = hessian(Objective(model, CrossEntropy(), [(x, y)]))
spectrum = measure_spectrum(operator, top=12, rel=0.02, max_products=256)
values, density = spectrum.top.values.numpy(), spectrum.density
print("largest eigenvalues:", " ".join(f"{value:.2f}" for value in values))
print(f"trace {spectrum.trace.value:.1f}, effective rank {spectrum.effective_rank.value:.1f} of {operator.size}")
print(f"negative mass {spectrum.negative_mass.value:.3f}, {spectrum.products} products")

width = 0.01 * values[0]
grid = np.linspace(-0.2 * values[0], 1.1 * values[0], 600)
mean, low, high = density.curve(grid, width)
axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
axes.semilogy(grid, mean, label="density, with its 95 % band")
axes.fill_between(grid, low, high, alpha=0.3)
axes.vlines(values, 1e-5, 4e-5, color="C3", label="the 12 largest eigenvalues")
axes.set(xlabel="eigenvalue (nats)", ylabel="density", ylim=(1e-5, 1e2), title="Digits: a bulk and its outliers")
axes.legend()
figure.savefig("spectral_density.png", dpi=150)
