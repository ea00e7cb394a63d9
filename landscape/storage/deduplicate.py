"""Deduplication of the `probes` table: one row for each step, measure and tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OWN_ENGINE", "deduplicate", "of_one_function"]

OWN_ENGINE: Final = "lossscope"
_FUNCTION: Final = ["mode", "loss_kind", "data_hash", "parameters"]


def deduplicate(probes: pd.DataFrame, data_hash: str | None) -> pd.DataFrame:
    """Return at most one row for each step, measure and tensor.

    A run may hold several rows for one quantity: recorded during training, measured again from a checkpoint, measured
    by another library, or measured on other data. The rule, in this order:

    1. One function for each measure: mode, loss, data hash and number of parameters are those of its first row with the
       run's own data hash (of its first row, if no row has that hash). Rows of another function, such as those of a
       partly frozen model, never appear in the same curve.
    2. Rows of lossscope's own engine are preferred to those of other engines.
    3. Of the remaining rows, the one written last is kept.

    `Run.probes` keeps every row.

    Args:
        probes: The table, ordered by step, ties in the order written.
        data_hash: The data hash in the run's manifest; None for a run recorded without an objective.

    Returns:
        A subset of the rows, in the order of the table.
    """
    if not len(probes):
        return probes
    rows = probes[of_one_function(probes, data_hash)]
    foreign = rows["engine"].fillna(OWN_ENGINE) != OWN_ENGINE
    ordered = rows.loc[[*rows.index[foreign], *rows.index[~foreign]]]
    return ordered.drop_duplicates(["step", "measure", "tensor"], keep="last").sort_index()


def of_one_function(probes: pd.DataFrame, data_hash: str | None) -> pd.Series[bool]:
    """Return a mask of the rows whose function is the one chosen for their measure (part 1 of the rule).

    Args:
        probes: Rows with `measure`, `mode`, `loss_kind`, `data_hash` and `parameters`.
        data_hash: The data hash in the run's manifest, or None.

    Returns:
        Boolean series of shape `(n,)`.
    """
    parts = [probes[name].astype(object).where(probes[name].notna(), "").map(str) for name in _FUNCTION]
    function = parts[0]
    for part in parts[1:]:
        function = function + "\0" + part
    own = probes["data_hash"].fillna("") == (data_hash or "")
    preferred = function.loc[[*probes.index[own], *probes.index[~own]]]
    first = preferred.groupby(probes["measure"].loc[preferred.index], sort=False).first()
    return function == probes["measure"].map(first)
