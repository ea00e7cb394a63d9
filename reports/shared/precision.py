"""Notes on the precision of curvature: bounds that were not met, a basis that did not fit, products not exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

from lossscope.landscape.measures.precision import unreachable
from lossscope.reports.shared.number_format import plain

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["precision_notes"]

_NAMED: Final = 2  # runs that a note names; of more it tells the number
_WHOLE: Final = "whole basis"


def precision_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return notes on what limits the precision of the curvature of runs, one for all runs of which it is true."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for note in (_missed, _unproven, _without_basis, _by_differences):
            if (words := note(run)) is not None:
                found.setdefault(words, []).append(run.name)
    return tuple(f"{_named(names, len(runs))}: {words}" for words, names in found.items())


def _named(names: Sequence[str], count: int) -> str:
    """Return the runs of which a note is true."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"All {count} runs" if len(names) == count else f"{len(names)} of {count} runs, such as {names[0]}"


def _missed(run: Run) -> str | None:
    """Return the measures that missed their bound for a cause other than the budget."""
    words = unreachable(run.estimates.to_dict("records"))
    return None if words is None else f"{words}."


def _unproven(run: Run) -> str | None:
    """Return the eigenvalues whose bound is that of some eigenvalue, not of the outermost."""
    rows = _rows(run.estimates, "proof", lambda proof: proof.eq(False))
    if rows.empty:
        return None
    return (
        f"{_listed(rows['measure'])} at {_evaluations(rows)} without proof that no eigenvalue lies further out: the "
        "bound is that of some eigenvalue."
    )


def _without_basis(run: Run) -> str | None:
    """Return the evaluations whose basis did not fit into memory."""
    rows = _rows(pd.concat([run.estimates, run.densities]), "basis", lambda basis: basis.notna() & basis.ne(_WHOLE))
    if rows.empty:
        return None
    memory = rows["memory"].dropna() if "memory" in rows else rows["basis"].iloc[:0]
    ends = dict.fromkeys((_bytes(memory.min()), _bytes(memory.max()))) if len(memory) else {}
    room = f" of {' to '.join(ends)}" if ends else ""
    return (
        f"the Krylov basis did not fit into the memory{room} at {_evaluations(rows)} ({_listed(rows['basis'])}): "
        "bounds are valid, and some are wider; more memory (memory=) or a folder (spill=) would keep the whole basis."
    )


def _by_differences(run: Run) -> str | None:
    """Return the largest error of products by finite differences."""
    rows = _rows(pd.concat([run.estimates, run.densities]), "product_error", lambda error: error.notna())
    if rows.empty:
        return None
    return (
        f"Hessian products at {_evaluations(rows)} are differences of gradients, with a measured relative error of "
        f"{plain(float(rows['product_error'].max()), 2)} at most; it is part of the bounds."
    )


def _rows(table: pd.DataFrame, column: str, chosen: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    """Return the rows whose value in a column is chosen; runs of earlier versions lack some columns."""
    return table[chosen(table[column])] if column in table else table.iloc[:0]


def _evaluations(rows: pd.DataFrame) -> str:
    count = rows["step"].nunique()
    return f"{count} evaluation{'' if count == 1 else 's'}"


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted(set(values.astype(str))))


def _bytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
