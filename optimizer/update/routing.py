"""Routing of parameters to the matrix or vector track by module type, printable as a table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lossscope.optimizer.errors import OptimizerError

__all__ = ["Route", "Routing", "routing"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Route:
    """Track of one parameter, with the reason."""

    name: str
    parameter: Tensor
    track: str  # "matrix" or "vector"
    convolution: bool  # viewed as (out, -1)
    reason: str


@dataclass(frozen=True)
class Routing:
    """Routes of all parameters of a model: print it to see them, pass `groups()` to the optimizer."""

    routes: tuple[Route, ...]

    def groups(self, **settings: Any) -> list[dict[str, Any]]:
        """Return one parameter group per kind of route; `settings` are added to each group."""

        def kind(route: Route) -> tuple[str, bool]:
            return route.track, route.convolution

        return [
            {
                "params": [(route.name, route.parameter) for route in routes],
                "track": track,
                "convolution": convolution,
                **settings,
            }
            for (track, convolution), routes in groupby(sorted(self.routes, key=kind), key=kind)
        ]

    def __str__(self) -> str:
        width = max((len(route.name) for route in self.routes), default=0)
        return "\n".join(
            f"{route.name:<{width}}  {route.track:<6}  {tuple(route.parameter.shape)!s:<18}  {route.reason}"
            for route in self.routes
        )


def _route(name: str, parameter: Tensor, owner: nn.Module) -> Route:
    kind = type(owner).__name__
    if parameter.ndim < 2:
        return Route(name, parameter, "vector", False, f"{parameter.ndim}-dimensional")
    if isinstance(owner, _NORMS):
        return Route(name, parameter, "vector", False, f"{kind} rescales, it does not mix")
    if isinstance(owner, _TABLES):
        return Route(name, parameter, "vector", False, f"{kind} is a table: its rows are looked up, not mixed")
    if isinstance(owner, _ConvNd):
        return Route(name, parameter, "matrix", True, f"{kind} as (out, -1)")
    return Route(name, parameter, "matrix", False, kind)


def _owner_name(name: str) -> str:
    # A parametrized weight lives in a helper module; its owner is the layer that carries the parametrization.
    path = name.split(".")[:-1]
    return ".".join(path[: path.index("parametrizations")] if "parametrizations" in path else path)


def routing(model: nn.Module) -> Routing:
    """Return the route of every parameter of a model that requires a gradient; a tied one follows its first owner.

    Matrices of linear maps, convolutions and raw parameters are orthogonalized. Biases, norms and embedding
    tables are not: the gradient of an embedding is nonzero only in the rows of a batch, and its polar factor would
    spread it over all rows.

    Raises:
        OptimizerError: The model has no parameter that requires a gradient.
    """
    owners = dict(model.named_modules())
    routes = tuple(
        _route(name, parameter, owners[_owner_name(name)])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    if not routes:
        raise OptimizerError(f"{type(model).__name__} has no parameter that requires a gradient; nothing to optimize")
    return Routing(routes)
