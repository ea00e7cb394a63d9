"""Numbers of pictures as rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

import pandas as pd

from lossscope.landscape.storage.files import atomic_write
from lossscope.landscape.surfaces.pictures import Fan, Path as StraightPath, Plane

__all__ = ["fan_rows", "path_rows", "plane_rows", "save_rows"]

Row = dict[str, str | float | None]


def fan_rows(fans: Mapping[str, Fan]) -> Iterator[Row]:
    """Yield a row for each point, direction and noise level: `point, line, direction, x, loss`.

    Args:
        fans: Fans by the name of their points; `line` is `loss`, `quadratic model` or `sharpest`.
    """
    for name, one in fans.items():
        lines = [("loss", one.losses), ("quadratic model", one.quadratic)]
        for line, values in lines:
            for direction, row in enumerate(() if values is None else values):
                for x, loss in zip(one.sigmas, row, strict=True):
                    yield {"point": name, "line": line, "direction": direction, "x": float(x), "loss": float(loss)}
        for x, loss in zip(one.sigmas, () if one.sharp is None else one.sharp, strict=False):
            yield {"point": name, "line": "sharpest", "direction": None, "x": float(x), "loss": float(loss)}


def path_rows(paths: Mapping[str, StraightPath]) -> Iterator[Row]:
    """Yield a row for each path, line and point on it: `point, line, direction, x, loss`.

    Args:
        paths: Paths by the names of their ends; `line` is `loss` or `statistics of the first point`.
    """
    for name, one in paths.items():
        lines = [("loss", one.drawn)]
        lines += [] if one.restated is None else [("statistics of the first point", one.losses)]
        for line, losses in lines:
            for x, loss in zip(one.shares, losses, strict=True):
                yield {"point": name, "line": line, "direction": None, "x": float(x), "loss": float(loss)}


def plane_rows(plane: Plane) -> Iterator[Row]:
    """Yield a row for each cell of each plane: `plane, x, y, loss`.

    Args:
        plane: The planes.
    """
    for number, losses in enumerate(plane.losses):
        for y, row in zip(plane.y, losses, strict=True):
            for x, loss in zip(plane.x, row, strict=True):
                yield {"plane": number, "x": float(x), "y": float(y), "loss": float(loss)}


def save_rows(rows: Iterable[Row], file: Path) -> None:
    """Write rows to a Parquet file, whole or not at all.

    Args:
        rows: The rows.
        file: The file, which is replaced.
    """
    buffer = BytesIO()
    pd.DataFrame(list(rows)).to_parquet(buffer, index=False)
    atomic_write(file, buffer.getvalue())
