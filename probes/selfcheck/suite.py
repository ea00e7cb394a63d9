"""Checks of this installation: every number that has a known answer, in the user's dtype and on his device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lossscope.probes.selfcheck.check import Check, Judge, Place
from lossscope.probes.selfcheck.oracles import ORACLE_CHECKS
from lossscope.probes.selfcheck.products import PRODUCT_CHECKS
from lossscope.probes.selfcheck.spectra import SPECTRUM_CHECKS

__all__ = ["CHECKS", "self_check"]

CHECKS: Final[tuple[Judge, ...]] = (*PRODUCT_CHECKS, *SPECTRUM_CHECKS, *ORACLE_CHECKS)


def self_check(place: Place) -> Iterator[Check]:
    """How each of the known answers comes out here, one after the other as they are found.

    Closed forms come first, as they catch what two derivatives of the same code would agree on; then properties that
    hold for any network; then other libraries, which are no dependencies: where one is missing, its checks are
    not judged, and that is no pass.

    Args:
        place: The dtype and the device to check.

    Yields:
        One check after the other, always all of `CHECKS`: one that raises has failed and stops no other.

    Example:
        >>> import torch
        >>> next(self_check(Place(torch.float64, torch.device("cpu")))).held
        True
    """
    for judge in CHECKS:
        yield judge(place)
