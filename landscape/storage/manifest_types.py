"""Types of the manifest's keys that lossscope reads. Any other key may hold anything that JSON can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from lossscope.landscape.storage.missing_values import MISSING_VALUES

__all__ = ["LONGEST_TEXT", "MOST_SESSIONS", "check_types"]

LONGEST_TEXT: Final = 10_000  # characters
MOST_SESSIONS: Final = 10_000
_LARGEST: Final = 2**53  # integers up to this are exact in every JSON reader

Check: TypeAlias = Callable[[Any, str], None]  # raises ValueError for a value, found at a place


def check_types(manifest: Mapping[str, Any]) -> None:
    """Check the known keys of a manifest that has JSON types. Every key may be missing or null.

    Raises:
        ValueError: A key has the wrong type, or is longer or larger than allowed; the message begins with its place.
    """
    for key, check in _KEYS.items():
        if manifest.get(key) is not None:
            check(manifest[key], key)


def _refuse(place: str, need: str, got: object) -> ValueError:
    """Return the error for a value that is not what is needed."""
    shown = repr(got)
    return ValueError(f"{place} must be {need}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def _text(value: Any, place: str) -> None:
    """Check a text."""
    if not isinstance(value, str):
        raise _refuse(place, "text", value)
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{place} has {len(value):,} characters, at most {LONGEST_TEXT:,} are allowed")


def _count(value: Any, place: str) -> None:
    """Check an integer that counts something."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise _refuse(place, f"an integer from 0 to {_LARGEST}", value)


def _number(value: Any, place: str) -> None:
    """Check a number."""
    if isinstance(value, bool) or not (isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST)):
        raise _refuse(place, "a number", value)


def _anything(value: Any, place: str) -> None:
    """Accept any value."""


def _mapping(keys: Mapping[str, Check], others: Check = _anything) -> Check:
    """Return the check of an object whose keys have these checks, where they are there and not null."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _refuse(place, "an object", value)
        for key, inner in value.items():
            if inner is not None:
                keys.get(key, others)(inner, f"{place}.{key[:40]}")

    return check


def _list(item: Check, most: int | None = None) -> Check:
    """Return the check of a list whose entries have this check."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise _refuse(place, "a list", value)
        if most is not None and len(value) > most:
            raise ValueError(f"{place} has {len(value):,} entries, at most {most:,} are allowed")
        for index, inner in enumerate(value):
            item(inner, f"{place}[{index}]")

    return check


def _nullable(check: Check) -> Check:
    """Return the check that also accepts null."""
    return lambda value, place: None if value is None else check(value, place)


def _required(key: str, check: Check) -> Check:
    """Return the check of an object that must have a key."""

    def both(value: Any, place: str) -> None:
        check(value, place)
        if value.get(key) is None:
            raise ValueError(f"{place} must have the key {key!r}")

    return both


_SESSION: Final = _required(
    "session",
    _mapping({"session": _count, "resumed_at": _count, "started": _text, "purpose": _text, "code_version": _text}),
)
_MISSING: Final = _required("step", _mapping({"step": _count, "instrument": _text, "why": _text}))
_TENSOR: Final = _mapping({"name": _text, "shape": _list(_count, 100), "track": _text})
_GROUP: Final = _mapping({"parameters": _list(_nullable(_text)), "settings": _mapping({})})
_KEYS: Final[dict[str, Check]] = {
    "id": _text,
    "name": _text,
    "arm": _text,
    "status": _text,
    "how_it_ended": _text,
    "created": _text,
    "ended": _text,
    "steps": _count,
    "sessions": _list(_SESSION, MOST_SESSIONS),
    "optimizer": _text,
    "optimizer_facts": _mapping({"class": _text, "rule": _text, "defaults": _mapping({}), "groups": _list(_GROUP)}),
    "trigger": _mapping({"mode": _text, "lambda": _number, "k": _count}),
    "model": _mapping({"parameters": _count, "tensors": _list(_TENSOR)}),
    "data_hash": _text,
    "loss_unit": _text,
    "environment": _mapping({}),
    "code_version": _text,
    "dtype": _text,
    "config": _mapping({}),
    "seeds": _mapping({}),
    "preset": _text,
    "overhead": _mapping({}, _number),
    MISSING_VALUES: _list(_MISSING),
}
