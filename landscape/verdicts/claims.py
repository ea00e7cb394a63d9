"""Claims: sentences about arms, read from CLAIMS.toml and checked before any run is opened."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.storage.files import read_regular, reason, remedy
from lossscope.landscape.verdicts.counter_examples import CHECKS
from lossscope.landscape.verdicts.rule import MARGIN
from lossscope.landscape.verdicts.statistic_names import parse_statistic
from lossscope.landscape.verdicts.verdict import PANEL
from lossscope.landscape.verdicts.wrong_values import nearest, shown

__all__ = ["Claim", "ClaimsFile", "Kind", "claims_of", "founding_claims", "read_claims"]

Kind: TypeAlias = Literal["flatter", "bound", "identity", "untestable"]
KINDS: Final = ("flatter", "bound", "identity", "untestable")
_LARGEST_FILE: Final = 2**20  # bytes
_MOST_CLAIMS: Final = 1000
_MOST_NAMES: Final = 64  # arms, tasks or measures of one claim
_LONGEST: Final = 4096  # characters of a text
_SMALL_LOSS: Final = 0.01  # nats: margin of a difference of test losses

_EVERY: Final = ("id", "text", "source", "kind", "needs", "minutes")
_KEYS: Final[dict[Kind, tuple[str, ...]]] = {
    "flatter": (*_EVERY, "a", "b", "level", "tasks", "measures", "margin"),
    "bound": (*_EVERY, "a", "b", "level", "tasks", "statistic", "at_least", "at_most", "margin"),
    "identity": (*_EVERY, "a", "tasks", "check"),
    "untestable": (*_EVERY, "reason"),
}
_NEEDED: Final[dict[Kind, tuple[str, ...]]] = {
    "flatter": ("id", "text", "kind", "a", "b"),
    "bound": ("id", "text", "kind", "a", "statistic"),
    "identity": ("id", "text", "kind", "check"),
    "untestable": ("id", "text", "kind", "reason"),
}
_TEXTS: Final = ("id", "text", "source", "needs", "statistic", "check", "reason")
_LISTS: Final = ("a", "b", "tasks", "measures")
_NUMBERS: Final = ("at_least", "at_most", "margin", "minutes")


@dataclass(frozen=True)
class Claim:
    """A sentence about arms, and how it is decided."""

    id: str
    text: str
    kind: Kind
    source: str = ""
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    level: float | Literal["lowest"] | None = None  # training loss; None: "lowest" where the kind needs one
    tasks: tuple[str, ...] = ()  # empty: all that are there
    measures: tuple[str, ...] = ()  # names of the panel; empty: those that are there
    margin: float = MARGIN  # of "small"
    statistic: str = ""  # of a bound
    at_least: float | None = None
    at_most: float | None = None
    check: str = ""  # of an identity
    needs: str = ""  # runs or data that decide it, in words
    minutes: float | None = None  # CPU minutes of those runs
    reason: str = ""  # why it is not testable
    file: str = ""  # where it is written
    file_hash: str = ""  # sha256 of that file
    modified: str = ""  # when it was last changed, ISO 8601 in UTC


@dataclass(frozen=True)
class ClaimsFile:
    """The claims of a file, with its hash and date."""

    path: str
    sha256: str
    modified: str  # ISO 8601 in UTC
    claims: tuple[Claim, ...]
    content: bytes = field(repr=False, default=b"")  # of the file


def read_claims(path: str | Path) -> ClaimsFile:
    """Read CLAIMS.toml.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or holds an unknown key, name or value; one line that names
            the claim and the nearest known names.
    """
    path = Path(path)
    try:
        content = read_regular(path, _LARGEST_FILE)
        changed = path.stat().st_mtime
    except RunError as error:
        raise ConfigError(f"claims: {error}") from error
    except OSError as error:
        raise ConfigError(f"claims {path} cannot be read: {reason(error)}; {remedy(error)}") from error
    modified = datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds")
    return _file(content, str(path), modified)


def founding_claims() -> ClaimsFile:
    """Return the claims of the founding papers, which ship with lossscope. They have no date."""
    from importlib.resources import files

    content = files("lossscope.landscape.verdicts").joinpath("founding.toml").read_bytes()
    return _file(content, "founding", "")


def _file(content: bytes, path: str, modified: str) -> ClaimsFile:
    """Parse the content of a file of claims."""
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"claims {path} is nested too deeply: make it flat") from None
    except ValueError as error:
        raise ConfigError(f"claims {path} is not valid TOML: {str(error).splitlines()[0][:200]}") from error
    digest = hashlib.sha256(content).hexdigest()
    claims = claims_of(table, path)
    return ClaimsFile(
        path,
        digest,
        modified,
        tuple(replace(claim, file=path, file_hash=digest, modified=modified) for claim in claims),
        content,
    )


def claims_of(table: Mapping[str, Any], path: str = "CLAIMS.toml") -> tuple[Claim, ...]:
    """Return the claims in a parsed file.

    Raises:
        ConfigError: As `read_claims`.
    """
    for key in table:
        if key != "claim":
            raise ConfigError(f"claims {path}: unknown key {shown(key)}; each claim begins with [[claim]]")
    entries = table.get("claim", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise ConfigError(f"claims {path} holds no claim; each begins with [[claim]]")
    if len(entries) > _MOST_CLAIMS:
        raise ConfigError(f"claims {path} holds {len(entries):,} claims, at most {_MOST_CLAIMS:,}: split the file")
    claims = tuple(_claim(entry, f"claim {number} of {path}") for number, entry in enumerate(entries, 1))
    seen = set[str]()
    for claim in claims:
        if claim.id in seen:
            raise ConfigError(f"claims {path}: two claims have the id {claim.id!r}; give each its own")
        seen.add(claim.id)
    return claims


def _claim(entry: Mapping[str, Any], place: str) -> Claim:
    """Return a claim after checking its keys and values."""
    if isinstance(entry.get("id"), str) and entry["id"]:
        place = f"claim {shown(entry['id'])}"
    kind = _kind(entry, place)
    for key in entry:
        if key not in _KEYS[kind]:
            raise ConfigError(
                f"{place}: unknown key {shown(key)} of a claim of kind {kind!r}; {nearest(key, _KEYS[kind])}"
            )
    for key in _NEEDED[kind]:
        if key not in entry:
            raise ConfigError(f"{place}: the key {key} is missing; a claim of kind {kind!r} needs it")
    values: dict[str, Any] = {key: _value(key, value, place) for key, value in entry.items()}
    if kind == "bound" and "margin" not in values:
        values["margin"] = _SMALL_LOSS
    claim = Claim(**values)
    _check_names(claim, place)
    _check_bound(claim, place)
    return claim


def _kind(entry: Mapping[str, Any], place: str) -> Kind:
    """Return the kind of a claim."""
    kind = entry.get("kind")
    if kind not in KINDS:
        given = "is missing" if kind is None else f"is unknown, got {shown(kind)}"
        raise ConfigError(f"{place}: the kind {given}; {nearest(str(kind), KINDS)}")
    return cast("Kind", kind)


def _value(key: str, value: object, place: str) -> Any:
    """Return a value of a known key after checking its type and size; names as a tuple."""
    if key in _LISTS:
        return _names(key, value, place)
    if key in _NUMBERS:
        return _number(key, value, place)
    if key == "level":
        return value if value == "lowest" else _number(key, value, place, more=' or "lowest"')
    need = key in ("id", "text", "statistic", "check", "reason")
    if not isinstance(value, str) or len(value) > _LONGEST or (need and not value.strip()):
        raise ConfigError(f"{place}: {key} must be a text of 1 to {_LONGEST} characters, got {shown(value)}")
    return value


def _names(key: str, value: object, place: str) -> tuple[str, ...]:
    """Return one name or a list of names as a tuple."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not 0 < len(names) <= _MOST_NAMES:
        raise ConfigError(f"{place}: {key} must be a name or a list of 1 to {_MOST_NAMES} names, got {shown(value)}")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST:
            raise ConfigError(f"{place}: {key} must hold names, got {shown(name)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{place}: {key} holds a name twice: {', '.join(sorted(names))}")
    return tuple(names)


def _number(key: str, value: object, place: str, more: str = "") -> float:
    """Return a finite number, above 0 where 0 has no meaning."""
    positive = key in ("level", "margin")
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        raise ConfigError(f"{place}: {key} must be a number{more}, got {shown(value)}")
    if positive and value <= 0:
        raise ConfigError(f"{place}: {key} must be above 0{more}, got {shown(value)}")
    return float(value)


def _check_names(claim: Claim, place: str) -> None:
    """Check arms, measures and the margin of a claim."""
    both = set(claim.a) & set(claim.b)
    if both:
        raise ConfigError(f"{place}: {sorted(both)[0]} stands on both sides; compare it with another arm")
    known = [one.measure for one in PANEL]
    for measure in claim.measures:
        if measure not in known:
            raise ConfigError(f"{place}: {shown(measure)} is no measure of the panel; {nearest(measure, known)}")
    if claim.kind == "flatter" and not claim.margin > 1:
        raise ConfigError(f"{place}: margin is a ratio above 1, such as 1.25, got {claim.margin:g}")
    if claim.kind == "identity" and claim.check not in CHECKS:
        raise ConfigError(f"{place}: unknown check {shown(claim.check)}; {nearest(claim.check, CHECKS)}")


def _check_bound(claim: Claim, place: str) -> None:
    """Check statistic and bound of a claim."""
    if claim.kind != "bound":
        return
    if (claim.at_least is None) == (claim.at_most is None):
        raise ConfigError(f"{place}: a claim of kind 'bound' needs one of at_least and at_most")
    statistic = parse_statistic(claim.statistic, place)
    bound = claim.at_least if claim.at_most is None else claim.at_most
    if statistic.ratio and not (bound or 0) > 0:
        raise ConfigError(f"{place}: {claim.statistic} is a ratio; its bound must be above 0, got {bound:g}")
    if statistic.paired and not claim.b:
        raise ConfigError(f"{place}: {claim.statistic} compares two arms; the key b is missing")
    if not statistic.paired and claim.b:
        raise ConfigError(f"{place}: {claim.statistic} is a number of one arm; leave out the key b")
