"""Hello, Rosenbrock: four optimizers from one start, their paths in one figure (rosenbrock.png)."""

import torch
from matplotlib.figure import Figure

from lossscope.optimizer import create

ARMS = {
    "sgd": {"lr": 2e-3, "momentum": 0.9},
    "adamw": {"lr": 0.03, "weight_decay": 0.0},
    "ars2-base": {"lr": 0.04, "weight_decay": 0.0},
    "sam": {"lr": 2e-3, "momentum": 0.9, "rho": 0.02},
}


def rosenbrock(w: torch.Tensor) -> torch.Tensor:
    """The loss at (x, y) = (w[0, 0], w[0, 1])."""
    x, y = w[0, 0], w[0, 1]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


x, y = torch.meshgrid(torch.linspace(-1.8, 1.6, 300), torch.linspace(-0.8, 2.4, 300), indexing="xy")
figure = Figure(figsize=(6, 4.5), layout="constrained")
axes = figure.subplots()
axes.contour(
    x, y, ((1 - x) ** 2 + 100 * (y - x**2) ** 2).log10(), levels=16, colors="0.8", linewidths=0.7, linestyles="solid"
)
for name, settings in ARMS.items():
    w = torch.nn.Parameter(torch.tensor([[-1.2, 1.0]]))  # a matrix of one row, so that all rules apply
    optimizer, path = create(name, [("w", w)], **settings), [w.detach().clone()]
    for _ in range(1000):
        for p in optimizer.passes():
            p.backward(rosenbrock(w))
        optimizer.step()
        path.append(w.detach().clone())
    axes.plot(*torch.cat(path).T, linewidth=1.2, label=f"{name}: loss {rosenbrock(w.detach()):.1e}")
axes.set(xlabel="x", ylabel="y", title="Rosenbrock's valley: 1000 steps from (-1.2, 1) towards (1, 1)")
axes.legend(fontsize=8, loc="lower left")
figure.savefig("rosenbrock.png", dpi=150)
