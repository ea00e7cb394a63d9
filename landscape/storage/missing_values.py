"""Missing values in the manifest of a run: what could not be measured, at which step, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["MISSING_VALUES", "is_curvature", "label_of", "measures_of", "missing_values", "named"]

MISSING_VALUES: Final = "curvature_gaps"  # key of the manifest, from when only curvature was listed
_MOST_NAMED: Final = 3  # measures of an entry that are named


def missing_values(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of the missing values in a manifest, which those of live and crashed runs have too."""
    found = manifest.get(MISSING_VALUES)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def is_curvature(entry: Mapping[str, Any]) -> bool:
    """Return True for a curvature evaluation; earlier versions recorded no others."""
    return bool(entry.get("instrument", "curvature") == "curvature")


def measures_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of the measures that an entry is about; empty for all of its instrument."""
    measures = entry.get("measures")
    return [str(one) for one in measures] if isinstance(measures, list) else []


def label_of(entry: Mapping[str, Any]) -> str:
    """Return the measures of a missing value, shortened; without any, its instrument."""
    return named(measures_of(entry)) or str(entry.get("instrument", "curvature"))


def named(measures: Sequence[str]) -> str:
    """Return the names of some measures: `a, b, c and 2 more`; "" for none."""
    more = len(measures) - _MOST_NAMED
    return ", ".join(measures[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
