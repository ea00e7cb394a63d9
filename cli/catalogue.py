"""`lossscope list`: the optimizers, workloads, measures and claims that exist."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.verdicts.claims import Claim

__all__ = ["list_app"]

list_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List optimizers, workloads, measures or claims."
)

_HARD_SPACE: Final = "\u00a0"

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print(kind: str, descriptions: dict[str, str], as_json: bool) -> None:
    if as_json:
        rows = [{"name": name, "description": text} for name, text in descriptions.items()]
        echo(json.dumps({"schema": 1, kind: rows}, indent=2), format="json")
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        echo(
            textwrap.fill(
                f"{name:<{width}}  {text}", text_width(), subsequent_indent=" " * (width + 2), break_on_hyphens=False
            )
        )


@list_app.command()
def optimizers(as_json: _Json = False) -> None:
    """Print the optimizers that `train` knows, each with its source and its usual settings.

    A workload may have others that are usual there, see `lossscope list workloads`.

    Example: lossscope list optimizers
    """
    from lossscope.optimizer import ENTRIES

    if as_json:
        rows = [
            {
                "name": name,
                "description": entry.words,
                "source": entry.source,
                "required": list(entry.required),
                "defaults": dict(entry.usual),
            }
            for name, entry in ENTRIES.items()
        ]
        echo(json.dumps({"schema": 1, "optimizers": rows}, indent=2), format="json")
        return
    width = text_width()
    for name, entry in ENTRIES.items():
        echo(f"{name}\n{_filled(entry.words, width)}\n{_filled(f'source: {entry.source}', width)}")
        echo(_filled(_settings(entry.usual, entry.required), width))


def _settings(usual: Mapping[str, Any], required: Sequence[str]) -> str:
    """Return the settings: the required ones first, then those with a default, and where the others come from."""
    known = [f"{key} (required)".replace(" ", _HARD_SPACE) for key in required]
    known += [f"{key}={value}".replace(" ", _HARD_SPACE) for key, value in usual.items() if value is not None]
    return ", ".join(known) + ("; the others as the base has them" if None in usual.values() else "")


def _filled(text: str, width: int) -> str:
    """Return the text in indented lines; a setting is never split."""
    lines = textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return lines.replace(_HARD_SPACE, " ")


@list_app.command()
def workloads(as_json: _Json = False) -> None:
    """Print the networks and data that `train` knows, with the settings that are usual there.

    Example: lossscope list workloads --json
    """
    from lossscope.landscape.training.workloads import FOLDER_WORKLOADS, WORKLOADS

    known = WORKLOADS | FOLDER_WORKLOADS
    _print("workloads", {name: f"{w.description}; {w.usual}" for name, w in known.items()}, as_json)


@list_app.command()
def measures(as_json: _Json = False) -> None:
    """Print the measures that a run can hold, by the groups that share one computation.

    Each has its unit and the maps of the weights, of those that keep the function, that leave it as it is; each group
    has its cost. What no such map changes depends on the function alone.

    `lossscope probe --measures` takes names of measures or of groups.

    Example: lossscope list measures
    """
    from lossscope.landscape.measures.catalogue import GROUPS, known_measures

    if as_json:
        rows = [
            {
                "name": measure.name,
                "description": f"[{measure.unit}] {measure.meaning}",
                "group": group.name,
                "probed": "never" if group.needs_step else "by default" if group.usual else "on request",
                "legacy": group.legacy,
                "unchanged_by": measure.invariance,
                "bounds": measure.bound.value,
                "cost": group.cost_in_words,
            }
            for group in GROUPS.values()
            for measure in group.measures
        ]
        echo(json.dumps({"schema": 1, "measures": rows}, indent=2), format="json")
        return
    room, width = text_width(), max(map(len, known_measures()))
    for group in GROUPS.values():
        marks = ["legacy"] * group.legacy + ["recorded only"] * group.needs_step + ["probed by default"] * group.usual
        echo(group.name + (f" ({', '.join(marks)})" if marks else ""))
        if group.cost_in_words:
            echo(f"    cost: {group.cost_in_words}")
        for measure in group.measures:
            name = f"    {measure.name:<{width}}  "
            words = f"[{measure.unit}] {measure.meaning}; unchanged by {measure.invariance}"
            echo(textwrap.fill(words, room, initial_indent=name, subsequent_indent=" " * len(name)))


@list_app.command()
def claims(as_json: _Json = False) -> None:
    """Print the claims of the founding papers, with their source, their kind and what decides them.

    `lossscope check founding` decides them from recorded runs.

    Example: lossscope list claims
    """
    from lossscope.landscape.verdicts.claims import founding_claims

    found = founding_claims().claims
    if as_json:
        echo(json.dumps({"schema": 1, "claims": [_claim(one) for one in found]}, indent=2), format="json")
        return
    width = text_width()
    for claim in found:
        cost = "" if claim.minutes is None else f", {claim.minutes:g} minutes"
        echo(f"{claim.id} ({claim.kind}{cost})\n{_filled(claim.text, width)}")
        for words in (f"source: {claim.source}", f"decided by: {_decided(claim)}"):
            if not words.endswith(": "):
                echo(_filled(words, width))


def _decided(claim: Claim) -> str:
    """Return what decides a claim, or why nothing does."""
    return claim.reason or claim.needs or claim.statistic or claim.check


def _claim(claim: Claim) -> dict[str, Any]:
    """Return a claim for programs; keys that say nothing are left out."""
    from dataclasses import asdict

    return {key: value for key, value in asdict(claim).items() if value not in ("", None, ())}
