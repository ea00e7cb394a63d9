"""Which rows of the probes table count, where a number was measured more than once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OWN_ENGINE", "deduplicate", "of_one_function"]

OWN_ENGINE: Final = "lossscope"
_FUNCTION: Final = ["mode", "loss_kind", "data_hash"]


def deduplicate(probes: pd.DataFrame, data_hash: str | None) -> pd.DataFrame:
    """The rows that count: at most one for each step, measure and tensor.

    A run may hold several rows for one number: recorded, measured again from a checkpoint, measured by another
    library, or measured on other data. The rule, in this order:

    1. One function for each measure: mode, loss and data hash are those of its first row with the run's own data hash
       (of its first row at all, where none has). Rows of another function never stand in the same curve.
    2. Rows of lossscope's own engine go before those of any other.
    3. Of what is left the row written last counts.

    Nothing is lost: `Run.probes` has every row.

    Args:
        probes: The table, ordered by step, ties in the order written.
        data_hash: The hash in the run's manifest; None where it was recorded without an objective.

    Returns:
        Some of its rows, in the order of the table.
    """
    if not len(probes):
        return probes
    rows = probes[of_one_function(probes, data_hash)]
    foreign = rows["engine"].fillna(OWN_ENGINE) != OWN_ENGINE
    ordered = rows.loc[[*rows.index[foreign], *rows.index[~foreign]]]
    return ordered.drop_duplicates(["step", "measure", "tensor"], keep="last").sort_index()


def of_one_function(probes: pd.DataFrame, data_hash: str | None) -> pd.Series[bool]:
    """Which rows are of the function that their measure is shown of: part 1 of the rule.

    Args:
        probes: Rows with `measure`, `mode`, `loss_kind` and `data_hash`.
        data_hash: The hash in the run's manifest, or None.

    Returns:
        `(n,)`, one truth value for each row.
    """
    function = probes[_FUNCTION].fillna("").agg("\0".join, axis=1)
    own = probes["data_hash"].fillna("") == (data_hash or "")
    preferred = function.loc[[*probes.index[own], *probes.index[~own]]]
    first = preferred.groupby(probes["measure"].loc[preferred.index], sort=False).first()
    return function == probes["measure"].map(first)
