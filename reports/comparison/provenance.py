"""Provenance of a verdict: few rows, however many runs stand behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Column, Table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.landscape.verdicts.claims import ClaimsFile

__all__ = ["provenance"]

_ENVIRONMENT: Final = ("lossscope", "torch", "python", "platform")
_MOST: Final = 4  # values named of one item


def provenance(runs: Sequence[Run], version: str, claims: ClaimsFile | None = None) -> Table:
    """Return versions, data, seeds and the number of runs, and hash and date of the claims.

    Args:
        runs: The runs that were judged.
        version: Version of lossscope that judged them.
        claims: The file of claims; None without one.
    """
    rows = [("judged by", f"lossscope {version}"), *_claims(claims), ("runs", str(len(runs)))]
    for key in _ENVIRONMENT:
        words = _values(_environment(run).get(key) for run in runs)
        rows += [(f"recorded with {key}" if key == "lossscope" else key, words)] if words else []
    rows.append(("data hash", _values(run.manifest.get("data_hash") for run in runs) or "not recorded"))
    rows.append(("seeds (init / split / order)", _values(map(_seeds, runs), unit="seeds") or "not recorded"))
    columns = (Column("item", "item", words=True), Column("value", "value", words=True))
    return Table("provenance", "Provenance", columns, tuple(rows))


def _claims(claims: ClaimsFile | None) -> Iterable[tuple[str, str]]:
    """Return name, hash and date of the claims."""
    if claims is not None:
        yield "claims", claims.path + (f", last changed {claims.modified}" if claims.modified else "")
        yield "claims, SHA-256", claims.sha256


def _environment(run: Run) -> Mapping[str, object]:
    """Return the environment of a run; empty if none was recorded."""
    found = run.manifest.get("environment")
    return found if isinstance(found, Mapping) else {}


def _values(found: Iterable[object], *, unit: str = "others") -> str:
    """Return the distinct values as text; of many, the first ones and the number of the others."""
    values = list(dict.fromkeys(str(one) for one in found if one is not None))
    words = ", ".join(values[:_MOST])
    return words if len(values) <= _MOST else f"{words} and {len(values) - _MOST} more ({len(values)} {unit})"


def _seeds(run: Run) -> str | None:
    """Return the three seeds of a run; None if they were not recorded."""
    seeds = run.manifest.get("seeds")
    if not isinstance(seeds, Mapping) or not seeds:
        return None
    return " / ".join(str(seeds.get(factor, "–")) for factor in ("init", "split", "order"))
