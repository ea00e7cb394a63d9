"""A rescaling that keeps the function: raw curvature changes at will, the measures that decide a comparison do not."""

from copy import deepcopy

import torch
from matplotlib.figure import Figure
from torch import nn

from lossscope import Objective, hessian, measure_spectrum
from lossscope.probes import CrossEntropy, adaptive_lambda_max, adaptive_trace, balance

NAMES = ("λ_max", "λ_max, balanced", "adaptive λ_max", "adaptive trace")
torch.manual_seed(0)
x, y = torch.randn(200, 8), torch.randint(0, 3, (200,))
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(300):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

found = {}
for factor in (factors := [2.0**k for k in range(-3, 4)]):
    copy = deepcopy(model)
    for name, p in copy.named_parameters():
        p.data *= {"0.weight": factor, "0.bias": factor, "2.weight": 1 / factor}.get(name, 1)  # the same function
    at, balanced = Objective(copy, CrossEntropy(), [(x, y)]), Objective(balance(copy).model, CrossEntropy(), [(x, y)])
    raw, fixed = (measure_spectrum(hessian(one), top=1, quantities=("top",)).top.estimate() for one in (at, balanced))
    for name, one in zip(NAMES, (raw, fixed, adaptive_lambda_max(at), adaptive_trace(at)), strict=True):
        found.setdefault(name, []).append(one.value)

axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
for (name, values), size in zip(found.items(), (6, 14, 9, 4), strict=True):
    ratios = [value / values[3] for value in values]
    print(f"{name:<16} from {min(ratios):.3f} to {max(ratios):.3f} of its value at factor 1")
    axes.semilogx(factors, ratios, "o-", base=2, markersize=size, label=name)
axes.set(xlabel="first layer times this, second layer over it", ylabel="ratio to factor 1", yscale="log")
axes.legend()
figure.savefig("rescaled_network.png", dpi=150)
