"""Verdicts on claims of kind `identity`: one counter-example contradicts them, nothing proves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.counter_examples import CHECKS, look
from lossscope.landscape.verdicts.pairs import arms_of, resolve, task_of, unknown_arm
from lossscope.landscape.verdicts.sentences import spoken
from lossscope.landscape.verdicts.verdict import Reason, Status, Verdict

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["identity"]

_MOST_SHOWN = 3  # counter-examples


def identity(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """Judge an identity: CONTRADICTED by a counter-example, else INCONCLUSIVE, never SUPPORTED."""
    check = CHECKS[claim.check]
    chosen: Sequence[Run | None] = [None]
    if check.of_run is not None:
        chosen, reason = _chosen(claim, runs)
        if reason is not None:
            return _verdict(claim, "NOT_JUDGED", spoken(reason), (reason,))
    found = [(run, look(check, run)) for run in chosen]
    tries = sum(one.tries for _, one in found)
    against = [f"{one.text}{'' if run is None else f' ({run.name})'}" for run, one in found if one.text]
    figures = {"tries": tries, "counter_examples": against[:_MOST_SHOWN]}
    if against:
        return _verdict(claim, "CONTRADICTED", f"As stated: {against[0]}.", figures=figures)
    if not tries:
        text = f"no run here recorded what {claim.check} compares; train one with --preset full"
        reason = Reason("NOT_MEASURED", text)
        return _verdict(claim, "NOT_JUDGED", spoken(reason), (reason,), figures)
    return _verdict(claim, "INCONCLUSIVE", f"No counter-example in {tries} tries.", figures=figures)


def _chosen(claim: Claim, runs: Sequence[Run]) -> tuple[Sequence[Run], Reason | None]:
    """Return the runs of a claim's arms and tasks, all if it names none; or the reason that there are none."""
    inside = [run for run in runs if task_of(run) in claim.tasks or not claim.tasks]
    if not inside:
        return [], Reason("NOT_MEASURED", f"no run is here, and {claim.check} needs one, of --preset full")
    if not claim.a:
        return inside, None
    arms = arms_of(inside)
    for name in claim.a:
        if not any(resolve(name, one) for one in arms.values()):
            return [], Reason("NO_PAIRS", unknown_arm(name, (known for one in arms.values() for known in one)))
    return [run for name in claim.a for one in arms.values() for run in resolve(name, one)], None


def _verdict(
    claim: Claim,
    status: Status,
    sentence: str,
    reasons: tuple[Reason, ...] = (),
    figures: dict[str, object] | None = None,
) -> Verdict:
    """Return the verdict."""
    more = figures or {}
    return Verdict(
        claim.id, "identity", claim.text, status, False, sentence, reasons, figures=more, source=claim.source
    )
