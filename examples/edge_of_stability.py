"""Edge of stability: under gradient descent the largest Hessian eigenvalue rises to 2 / lr and stays there."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lossscope import EigenTracker, Objective, hessian
from lossscope.probes import MeanSquaredError

LR, STEPS, EVERY = 0.12, 2500, 50

torch.manual_seed(0)
x = torch.linspace(-1, 1, 20).unsqueeze(1)
y = torch.cos(5 * torch.acos(x))  # Chebyshev's polynomial of degree 5
model = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
objective = Objective(model, MeanSquaredError(), [(x, y)])
optimizer, tracker = torch.optim.SGD(model.parameters(), lr=LR), EigenTracker(rel=0.02)
steps, losses, sharpness = [], [], []
for step in range(STEPS + 1):
    loss = (model(x) - y).square().mean()
    if step % EVERY == 0:
        steps.append(step)
        losses.append(loss.item())
        sharpness.append(tracker.measure(hessian(objective)).top.estimate().value)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

print(f"lambda_max: {sharpness[0]:.2f} at the start, {sharpness[-1]:.2f} at the end; 2 / lr is {2 / LR:.2f}")
figure = Figure(figsize=(6, 4.5), layout="constrained")
above, below = figure.subplots(2, sharex=True)
above.semilogy(steps, losses)
above.set(ylabel="training loss", title="Gradient descent sharpens until it is barely stable")
below.plot(steps, sharpness, label="λ_max")
below.axhline(2 / LR, color="0.4", linestyle="--", label="2 / lr")
below.set(xlabel="step", ylabel="λ_max")
below.legend()
figure.savefig("edge_of_stability.png", dpi=150)
