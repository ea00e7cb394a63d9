"""Documents of verdicts: one comparison, or the claims of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.verdicts.pairs import arms_of, resolve
from lossscope.landscape.verdicts.verdict import Verdict
from lossscope.reports.comparison.provenance import provenance
from lossscope.reports.comparison.section import outcome, section, setting
from lossscope.reports.content import Document
from lossscope.reports.shared.arm_colors import document_in_color

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.landscape.verdicts.claims import ClaimsFile

__all__ = ["check_report", "compare_report", "exit_code"]

_ORDER: Final = ("SUPPORTED", "CONTRADICTED", "EQUIVALENT", "MIXED", "INCONCLUSIVE", "NOT_JUDGED")


def compare_report(verdict: Verdict, runs: Sequence[Run], *, version: str, command: str = "") -> Document:
    """Return the document of one comparison.

    Args:
        verdict: Verdict on two arms.
        runs: The runs of both.
        version: Version of lossscope.
        command: Command that makes this document again.
    """
    shown = section(verdict)
    document = Document(
        kind="compare",
        title=shown.question,
        subtitle=setting(verdict),
        sections=(shown,),
        provenance=provenance(_of_arms(verdict, runs), version),
        reproduce=(command,) if command else (),
    )
    return document_in_color(document, runs)


def check_report(
    verdicts: Sequence[Verdict],
    runs: Sequence[Run],
    *,
    version: str,
    claims: ClaimsFile | None = None,
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Document:
    """Return the document of the verdicts on claims: one line each, and the number of each status.

    Args:
        verdicts: One for each claim, in the order of the file.
        runs: The runs that were looked at.
        version: Version of lossscope.
        claims: The file of claims.
        commands: Commands that make this document again.
        notes: Sentences about the whole, such as which claims were left out.
    """
    sections = tuple(section(one) for one in verdicts)
    document = Document(
        kind="check",
        title=sections[0].question if len(sections) == 1 else "Claims and verdicts",
        subtitle=_dated(claims),
        sections=sections,
        provenance=provenance(runs, version, claims),
        closing=f"{counts(verdicts)} (exit code {exit_code(verdicts)})",
        notes=tuple(notes),
        reproduce=tuple(commands),
    )
    return document_in_color(document, runs)


def counts(verdicts: Sequence[Verdict]) -> str:
    """Return the number of claims, and how many have each status: `5 claims: 2 supported, 3 not judged`."""
    found = Counter(one.status for one in verdicts)
    words = ", ".join(f"{found[one]} {one.lower().replace('_', ' ')}" for one in _ORDER if found[one])
    return f"{len(verdicts)} {'claim' if len(verdicts) == 1 else 'claims'}: {words or 'none'}"


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return 0 if every claim is supported, 3 if the runs speak against one, else 4."""
    outcomes = [outcome(one) for one in verdicts]
    if False in outcomes:
        return 3
    return 4 if None in outcomes else 0


def _dated(claims: ClaimsFile | None) -> str:
    """Return where the claims stand and when they were last changed."""
    if claims is None:
        return ""
    changed = f", last changed {claims.modified}" if claims.modified else ""
    return f"Claims of {claims.path}{changed}, SHA-256 {claims.sha256[:16]}…"


def _of_arms(verdict: Verdict, runs: Sequence[Run]) -> Sequence[Run]:
    """Return the runs of the verdict's arms; all of them if it names none, or single runs."""
    names = dict.fromkeys(name for row in verdict.rows for name in (row.a, row.b))
    found = [run for arms in arms_of(runs).values() for name in names for run in resolve(name, arms)]
    return found or runs
