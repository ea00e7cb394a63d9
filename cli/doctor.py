"""`lossscope doctor`: whether known answers come out right on this machine, in this dtype and on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lossscope.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lossscope.probes.operators.product_choice import Choice
    from lossscope.probes.selfcheck.check import Check, Place
    from lossscope.reports.content import Table

__all__ = ["doctor"]

_FAILED: Final = 3  # the exit code where a check did not hold
_OUTCOMES: Final = {True: "pass", False: "FAIL", None: "not judged"}
_WORKLOAD: Final = "digits-mlp"
_SAMPLES: Final = 512
_JOBS: Final = (200, 30_000)  # products that a method is chosen for: one spectrum, and a long run


def doctor(
    device: Annotated[Literal["cpu", "cuda", "mps"], typer.Option(help="What takes the products.")] = "cpu",
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Of parameters and products.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Check closed forms, properties and other libraries on this machine; exit code 3 when one check fails.

    A check that could not be judged is no pass: it says what is missing and how to get it.

    Example: lossscope doctor --dtype float64
    """
    from lossscope.reports.render.text import table_text

    place = _place(device, dtype)
    facts, checks = _environment(place), _checked(place)
    products = _products(place, checks)
    counts = {words: sum(_OUTCOMES[one.held] == words for one in checks) for words in _OUTCOMES.values()}
    if as_json:
        typer.echo(_json(facts, checks, products, counts))
    else:
        for table in (_facts_table(facts), _check_table(checks), *([_product_table(products)] if products else [])):
            typer.echo(table_text(table))
        typer.echo(", ".join(f"{count} {words}" for words, count in counts.items()))
    if counts["FAIL"]:
        raise typer.Exit(_FAILED)


def _place(device: str, dtype: str) -> Place:
    """The place to check, once it is known to exist."""
    import torch

    from lossscope.landscape.errors import ConfigError
    from lossscope.probes.selfcheck.check import Place

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"torch {torch.__version__} sees no cuda device here: use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"torch {torch.__version__} sees no mps device here: use --device cpu")
    if device == "mps" and dtype == "float64":
        raise ConfigError("mps has no float64: use --dtype float32, or --device cpu")
    return Place(getattr(torch, dtype), torch.device(device))


def _checked(place: Place) -> list[Check]:
    """All checks, with their progress."""
    from lossscope.cli.progress import progress_bar
    from lossscope.probes.selfcheck.suite import CHECKS, self_check

    found: list[Check] = []
    with progress_bar("doctor") as progress:
        for one in self_check(place):
            found.append(one)
            progress(len(found), len(CHECKS), one.name)
    return found


def _environment(place: Place) -> dict[str, Any]:
    """Versions, threads and the device, and the libraries that the checks compare with."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from lossscope.landscape.recording.run_metadata import environment
    from lossscope.probes.selfcheck.oracles import ORACLES

    facts: dict[str, Any] = {"device": place.device.type, "dtype": str(place.dtype).removeprefix("torch.")}
    if place.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(place.device)
    facts |= environment()
    for name in ("scipy", *ORACLES):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def _facts_table(facts: Mapping[str, Any]) -> Table:
    from lossscope.reports.content import Column, Table

    columns = (Column("fact", "fact", words=True), Column("value", "value", words=True))
    rows = [(key, "not installed" if value is None else str(value)) for key, value in facts.items()]
    return Table("environment", "Environment", columns, tuple(rows))


def _check_table(checks: Sequence[Check]) -> Table:
    from lossscope.reports.content import Column, Table
    from lossscope.reports.shared.number_format import plain

    columns = (
        Column("check", "check", words=True),
        Column("outcome", "outcome", words=True),
        Column("figure", "figure"),
        Column("bound", "bound"),
        Column("what", "what must hold", words=True),
    )
    rows = [
        (one.name, _OUTCOMES[one.held], plain(one.figure, 2), plain(one.bound, 2), _statement(one)) for one in checks
    ]
    note = "A check passes where its figure is at most its bound; --json says what each figure is."
    return Table("checks", "Checks", columns, tuple(rows), note)


def _statement(one: Check) -> str:
    """What must hold and, where it does not or is not known, why."""
    return one.what if one.held else f"{one.what}: {one.why}"


def _products(place: Place, checks: list[Check]) -> dict[str, Any] | None:
    """What `_chosen` says; where it raises, that is one more check that failed."""
    from math import nan

    from lossscope.probes.selfcheck.check import Check

    try:
        return _chosen(place)
    except Exception as error:
        why = f"it raised {type(error).__name__}: {' '.join(str(error).split())}"
        checks.append(Check("products", f"auto multiplies by the Hessian of {_WORKLOAD}", nan, nan, False, why))
        return None


def _chosen(place: Place) -> dict[str, Any]:
    """How `auto` takes Hessian products of a small network on real digits, and what the candidates cost."""
    import torch

    from lossscope.landscape.training.workloads import WORKLOADS, built
    from lossscope.probes import CrossEntropy, Objective, hessian
    from lossscope.probes.operators.hessian import HESSIAN_METHODS

    workload = WORKLOADS[_WORKLOAD]
    net = built(workload.network, 0).to(place.device, place.dtype)
    inputs, labels = (part[:_SAMPLES].to(place.device) for part in workload.split(0).train)
    H = hessian(Objective(net, CrossEntropy(), [(inputs.to(place.dtype), labels)]))
    chosen = []
    for expected in _JOBS:
        with H.cached(expected=expected):
            H @ torch.ones(H.size)
            chosen.append((expected, H.choice))
    gradient = H.gradient_seconds
    tried = {(trial.method, trial.width): trial for _, choice in chosen if choice for trial in choice.trials}
    return {
        "network": _WORKLOAD,
        "parameters": H.size,
        "samples": _SAMPLES,
        "gradient_seconds": gradient,
        "chosen": [
            {"expected": expected, "method": choice.method, "width": choice.width, "why": _why(choice)}
            for expected, choice in chosen
            if choice
        ],
        "candidates": [
            {
                "method": trial.method,
                "width": trial.width,
                "setup_gradients": trial.setup_seconds / gradient,
                "product_gradients": trial.column_seconds / gradient,
                "refused": trial.refused,
            }
            for trial in tried.values()
        ],
        "untried": sorted({method.name for method in HESSIAN_METHODS} - {name for name, _ in tried}),
    }


def _why(choice: Choice) -> str:
    """Why `auto` takes a method; where nothing was left to compare it with, why that is."""
    others = [trial for trial in choice.trials if trial.method != choice.method]
    if not choice.trials or any(not trial.refused for trial in others):
        return choice.why
    if others:
        return "measured: every other method that was tried is wrong here or raises"
    return "no other method was worth the time to try it"


def _product_table(products: Mapping[str, Any]) -> Table:
    from lossscope.reports.content import Column, Table

    columns = (
        Column("method", "method", words=True),
        Column("width", "columns at a time"),
        Column("setup", "set-up", "gradients"),
        Column("product", "each product", "gradients"),
        Column("note", "", words=True),
    )
    rows: list[tuple[str | int | float | None, ...]] = [
        (one["method"], one["width"], one["setup_gradients"], one["product_gradients"], one["refused"])
        for one in products["candidates"]
    ]
    rows += [(name, None, None, None, "not tried: too dear to try, or a last resort") for name in products["untried"]]
    title = f"Hessian products of {products['network']} ({products['parameters']} parameters)"
    note = "; ".join(
        f"for {one['expected']} products auto takes {one['method']}, {one['width']} at a time ({one['why']})"
        for one in products["chosen"]
    )
    seconds = 1000 * products["gradient_seconds"]
    note += f"; a gradient over {products['samples']} samples takes {seconds:.3g} ms"
    return Table("products", title, columns, tuple(rows), note)


def _json(
    facts: Mapping[str, Any], checks: Sequence[Check], products: Mapping[str, Any] | None, counts: Mapping[str, int]
) -> str:
    """Everything as one JSON object; numbers that are not finite are null."""
    import json
    import math
    from dataclasses import asdict

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    content = {
        "schema": 1,
        "environment": dict(facts),
        "checks": [asdict(one) for one in checks],
        "counts": dict(counts),
        "products": products,
    }
    return json.dumps(finite(content), ensure_ascii=False, indent=2, allow_nan=False)
