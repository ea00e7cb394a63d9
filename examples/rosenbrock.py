"""Rosenbrock function: paths of four optimizers from the same start, in one figure (rosenbrock.png)."""

import torch
from matplotlib.figure import Figure

from lossscope import create

ARMS = {
    "sgd": {"lr": 1e-3, "momentum": 0.95},
    "adamw": {"lr": 0.2, "weight_decay": 0.0},
    "ars2-base": {"lr": 0.2, "weight_decay": 0.0},
    "sam": {"lr": 2e-3, "momentum": 0.9, "rho": 0.005},  # a fixed radius keeps it away from the minimum
}


def rosenbrock(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the loss at (x, y)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


x, y = torch.meshgrid(torch.linspace(-1.8, 1.6, 300), torch.linspace(-0.8, 2.4, 300), indexing="xy")
figure = Figure(figsize=(6, 4.5), layout="constrained")
axes = figure.subplots()
axes.contour(x, y, rosenbrock(x, y).log10(), levels=16, colors="0.8", linewidths=0.7, linestyles="solid")
for name, settings in ARMS.items():
    w = torch.nn.Parameter(torch.tensor([[-1.2, 1.0]]))  # a matrix with one row, so that every rule applies
    optimizer, path = create(name, [("w", w)], **settings), [w.detach().clone()]
    for _ in range(1000):
        for p in optimizer.passes():
            p.backward(rosenbrock(*w[0]))
        optimizer.step()
        path.append(w.detach().clone())
    end = f"loss {rosenbrock(*w.detach()[0]):.1e} at ({w[0, 0]:.3f}, {w[0, 1]:.3f})"
    print(f"{name:<10} {end}")
    axes.plot(*torch.cat(path).T, linewidth=1.2, label=f"{name}: {end}")
axes.set(xlabel="x", ylabel="y", title="Rosenbrock's valley: 1000 steps from (-1.2, 1) towards (1, 1)")
axes.legend(fontsize=8, loc="upper center")
figure.savefig("rosenbrock.png", dpi=150)
