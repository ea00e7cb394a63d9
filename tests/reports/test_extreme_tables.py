"""Tables with extreme numbers: every report in every format is made of them, without an exception or a warning."""

from __future__ import annotations

import json
import math
import random
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest

from lossscope import reports
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES, Column
from lossscope.reports import render

REPORTS = ("overview", "sharpness", "spectral_entropy", "flatness", "dynamics")
OBJECTS = {
    "spectra": ("gradient", "momentum", "whitened", "source", "orthogonal", "update", "weight", "batch_gradient"),
    "pairs": ("gradient", "shear"),
}
KINDS: tuple[tuple[float | None, ...], ...] = (
    (1e308, -1e308, 1.7e308),
    (5e-324, -5e-324, 0.0),
    (math.inf, -math.inf, 1.0),
    (None,),
    (1e160, 1e200, -1e170, 1.0),
    (1e308, 5e-324, math.inf, None, 0.0, -1.0, 1e-300),
)
SHAPES: tuple[Any, ...] = ([8, 8], [0], [], ["x"], [1e308], "no", None)


def cell(draw: random.Random, table: str, column: Column, numbers: tuple[float | None, ...]) -> object:
    """Return a value of a column that fits its type."""
    texts = {
        "track": ("matrix", "vector"),
        "tensor": ("a", "b"),
        "measure": tuple(known_measures()),
        "data_hash": ("x",),
    }
    if column.name == "object":
        return draw.choice(OBJECTS[table])
    if column.name == "tensor" and not column.required:
        return draw.choice((None, None, "a"))
    if column.name in texts:
        return draw.choice(texts[column.name])
    if not column.required and draw.random() < 0.15:
        return None
    match column.type:
        case "int":
            return draw.choice((0, 0, 1, 5, 20) if column.name in ("lag", "probe") else (0, 1, 7, -5, 2**62))
        case "float":
            return draw.choice(numbers)
        case "floats":
            return [draw.choice(numbers) for _ in range(draw.choice((0, 1, 3)))]
        case "bool":
            return draw.random() < 0.5
    return draw.choice(("x", "", "\x1b[31m"))


def extreme_run(path: Path, seed: int) -> Run:
    """Write a run whose tables hold extreme numbers of one kind."""
    draw, numbers = random.Random(seed), KINDS[seed % len(KINDS)]
    facts = {
        "arm": draw.choice(("p", "q")),
        "data_hash": "x",
        "seeds": draw.choice((None, {"init": seed})),
        "trigger": draw.choice(
            (None, {"mode": "aga", "lambda": 1e308, "k": 6}, {"mode": "timer", "lambda": 1.0, "k": 1})
        ),
    }
    odd = {  # the store refuses to write or read some of these
        "model": {"parameters": draw.choice((0, 5, 2**53)), "tensors": [{"name": "a", "shape": draw.choice(SHAPES)}]},
        "overhead": draw.choice((None, {"share": draw.choice(numbers), "curvature_share": 1e308})),
    }
    store = RunStore.create(path, facts)
    for step in range(1, draw.choice((1, 3, 15)) + 1):
        for table, columns in TABLES.items():
            for _ in range(1 if table == "steps" else draw.choice((0, 2))):
                row = {column.name: cell(draw, table, column, numbers) for column in columns}
                if table == "densities" and draw.random() < 0.8:  # most of them fit together
                    nodes = sorted(one for one in row["nodes"] if one is not None)
                    row |= {"nodes": nodes, "weights": [0.5] * len(nodes), "settled": [1.0] * len(nodes)}
                store.append(table, {**row, "step": step})
    store.close("failed", "the loss became nan")
    run = Run.open(path)
    run.manifest.update(odd)
    return run


def check(
    folder: Path,
    seeds: range,
    formats: tuple[Literal["text", "json", "html"], ...],
    kinds: tuple[str, ...] = REPORTS,
) -> None:
    """Make reports of several runs together; a warning is an error."""
    runs = [extreme_run(folder / str(seed), seed) for seed in seeds]
    for report in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = getattr(reports, report)(runs)
            shown = {kind: render(made, kind) for kind in formats}
        text = re.sub(r"became nan|, got \S+ and \S+", "", shown.get("text", ""))  # words of errors
        assert not re.search(r"\b(nan|inf)\b", text)
        json.loads(shown.get("json", "{}"), parse_constant=pytest.fail)


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_reports_of_extreme_numbers_are_made_as_text_and_json(tmp_path: Path, seed: int) -> None:
    check(tmp_path, range(seed, seed + 1), ("text", "json"))


def test_figures_of_extreme_numbers_are_drawn(tmp_path: Path) -> None:
    check(tmp_path, range(len(KINDS)), ("html",), ("sharpness",))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 120, 3))
def test_many_more_of_them_are_made(tmp_path: Path, first: int) -> None:
    check(tmp_path, range(first, first + 3), ("text", "json", "html"))
