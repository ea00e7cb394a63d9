"""`lossscope doctor`: checks of known answers on this machine, in one dtype and on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lossscope.cli.options import JsonOption
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lossscope.probes.selfcheck.check import CheckResult, Place
    from lossscope.reports.content import Table

__all__ = ["TESTED_VERSIONS", "doctor"]

# the releases in constraints.txt, which the wheel does not contain; a test compares the two
TESTED_VERSIONS: Final = {
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "pandas": "3.1.1",
    "pyarrow": "26.0.1",
    "matplotlib": "3.11.2",
    "jinja2": "3.1.6",
    "typer": "0.29.2",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "filelock": "4.3.1",
    "joblib": "1.6.0",
    "lazy-loader": "0.6",
    "scikit-learn": "1.9.1",
    "pyhessian": "0.1",
}
_FAILED: Final = 3  # exit code if a check fails
_OUTCOMES: Final = {True: "pass", False: "FAIL", None: "inconclusive"}
_WORKLOAD: Final = "digits-mlp"
_SAMPLES: Final = 512
_REPEATS: Final = 20  # products that are timed


def doctor(
    device: Annotated[Literal["cpu", "cuda", "mps"], typer.Option(help="Device of the products.")] = "cpu",
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Dtype of parameters and products.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Check closed forms, properties and other libraries on this machine; exit code 3 if a check fails.

    An inconclusive check does not count as passed: it says what is missing and how to get it.

    Example: lossscope doctor --dtype float64
    """
    from lossscope.reports.render.text import table_text

    place = _place(device, dtype)
    facts, untested, checks = _environment(place), _untested(), _checked(place)
    products = _products(place, checks)
    counts = {words: sum(_OUTCOMES[one.passed] == words for one in checks) for words in _OUTCOMES.values()}
    if as_json:
        echo(_json(facts, untested, checks, products, counts), format="json")
    else:
        optional = (*([_untested_table(untested)] if untested else []), _check_table(checks))
        for table in (_facts_table(facts), *optional, *([_product_table(products)] if products else [])):
            echo(table_text(table, text_width()))
        echo(", ".join(f"{count} {words}" for words, count in counts.items()))
    if counts["FAIL"]:
        raise typer.Exit(_FAILED)


def _place(device: str, dtype: str) -> Place:
    """Return the dtype and the device to check after checking that the device is available."""
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


def _checked(place: Place) -> list[CheckResult]:
    """Run all checks under a progress bar."""
    from lossscope.cli.progress import progress_bar
    from lossscope.probes.selfcheck.suite import CHECKS, self_check

    found: list[CheckResult] = []
    with progress_bar("doctor") as progress:
        for one in self_check(place):
            found.append(one)
            progress(len(found), len(CHECKS), one.name)
    return found


def _environment(place: Place) -> dict[str, Any]:
    """Return versions, threads, the device, and the versions of the libraries used as references."""
    import torch

    from lossscope.landscape.recording.run_metadata import environment
    from lossscope.probes.selfcheck.oracles import ORACLES

    facts: dict[str, Any] = {"device": place.device.type, "dtype": str(place.dtype).removeprefix("torch.")}
    if place.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(place.device)
    return facts | environment() | {name: _installed(name) for name in ("scipy", *ORACLES)}


def _installed(distribution: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _untested() -> dict[str, dict[str, str]]:
    """Return the installed packages whose version differs from the tested one, with both versions."""
    found: dict[str, dict[str, str]] = {}
    for name, tested in TESTED_VERSIONS.items():
        installed = _installed(name)
        # a local label such as +cpu or +cu128 names a build of the same release
        if installed is not None and installed.partition("+")[0] != tested:
            found[name] = {"installed": installed, "tested": tested}
    return found


def _facts_table(facts: Mapping[str, Any]) -> Table:
    from lossscope.reports.content import Column, Table

    columns = (Column("fact", "fact", words=True), Column("value", "value", words=True))
    rows = [(key, "not installed" if value is None else str(value)) for key, value in facts.items()]
    return Table("environment", "Environment", columns, tuple(rows))


def _untested_table(untested: Mapping[str, Mapping[str, str]]) -> Table:
    from lossscope.reports.content import Column, Table

    columns = (
        Column("package", "package", words=True),
        Column("installed", "installed", words=True),
        Column("tested", "tested", words=True),
    )
    rows = [(name, one["installed"], one["tested"]) for name, one in untested.items()]
    note = "Tests were run with other versions of these packages. The checks below are made with the installed ones."
    return Table("untested", "Untested versions", columns, tuple(rows), note)


def _check_table(checks: Sequence[CheckResult]) -> Table:
    from lossscope.reports.content import Column, Table
    from lossscope.reports.shared.number_format import plain

    columns = (
        Column("check", "check", words=True),
        Column("outcome", "outcome", words=True),
        Column("error", "error"),
        Column("bound", "bound"),
        Column("statement", "statement", words=True),
    )
    rows = [
        (one.name, _OUTCOMES[one.passed], plain(one.error, 2), plain(one.bound, 2), _statement(one)) for one in checks
    ]
    note = "A check passes if its error is at most its bound; --json says how each error is defined."
    return Table("checks", "Checks", columns, tuple(rows), note)


def _statement(one: CheckResult) -> str:
    """Return the statement of a check, with the detail unless it passed."""
    return one.statement if one.passed else f"{one.statement}: {one.detail}"


def _products(place: Place, checks: list[CheckResult]) -> dict[str, Any] | None:
    """Return the cost of Hessian products; where taking them raises, append a failed check and return None."""
    from math import nan

    from lossscope.probes.selfcheck.check import CheckResult

    try:
        return _product_cost(place)
    except Exception as error:
        detail = f"it raised {type(error).__name__}: {' '.join(str(error).split())}"
        statement = f"the Hessian of {_WORKLOAD} can be multiplied"
        checks.append(CheckResult("products", statement, nan, nan, False, detail))
        return None


def _product_cost(place: Place) -> dict[str, Any]:
    """Measure the cost of Hessian products of a small network on real data, in gradients."""
    import torch

    from lossscope.landscape.training.workloads import WORKLOADS, built
    from lossscope.probes import CrossEntropy, Objective, hessian
    from lossscope.probes.operators.timing import now

    workload = WORKLOADS[_WORKLOAD]
    net = built(workload.network, 0).to(place.device, place.dtype)
    inputs, labels = (part[:_SAMPLES].to(place.device) for part in workload.split(0).train)
    H = hessian(Objective(net, CrossEntropy(), [(inputs.to(place.dtype), labels)]))
    v = torch.ones(H.size)
    with H.cached():
        H @ v  # builds the graph
        seconds = []
        for _ in range(_REPEATS):
            begun = now(place.device)
            H @ v
            seconds.append(now(place.device) - begun)
    return {
        "network": _WORKLOAD,
        "parameters": H.size,
        "samples": _SAMPLES,
        "method": H.method,
        "fallback_reason": H.fallback_reason,
        "gradient_seconds": H.gradient_seconds,
        "product_gradients": min(seconds) / H.gradient_seconds,
    }


def _product_table(products: Mapping[str, Any]) -> Table:
    from lossscope.reports.content import Column, Table

    columns = (
        Column("method", "method", words=True),
        Column("gradient", "a gradient", "ms"),
        Column("product", "a product", "gradients"),
    )
    row = (products["method"], 1000 * products["gradient_seconds"], products["product_gradients"])
    title = f"Hessian products of {products['network']} ({products['parameters']} parameters)"
    note = f"The loss is a mean over {products['samples']} samples; its graph is cached between products."
    if products["fallback_reason"]:
        note += f" {products['fallback_reason']}."
    return Table("products", title, columns, (row,), note)


def _json(
    facts: Mapping[str, Any],
    untested: Mapping[str, Mapping[str, str]],
    checks: Sequence[CheckResult],
    products: Mapping[str, Any] | None,
    counts: Mapping[str, int],
) -> str:
    """Return all results as one JSON object; numbers that are not finite are null."""
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
        "untested_versions": dict(untested),
        "checks": [asdict(one) for one in checks],
        "counts": dict(counts),
        "products": products,
    }
    return json.dumps(finite(content), ensure_ascii=False, indent=2, allow_nan=False)
