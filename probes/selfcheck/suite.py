"""Self-check of this installation: quantities with known answers, in the user's dtype and on the user's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lossscope.probes.selfcheck.check import Check, CheckResult, Place
from lossscope.probes.selfcheck.gauge import GAUGE_CHECKS
from lossscope.probes.selfcheck.oracles import ORACLE_CHECKS
from lossscope.probes.selfcheck.products import PRODUCT_CHECKS
from lossscope.probes.selfcheck.spectra import SPECTRUM_CHECKS

__all__ = ["CHECKS", "self_check"]

CHECKS: Final[tuple[Check, ...]] = (*PRODUCT_CHECKS, *SPECTRUM_CHECKS, *GAUGE_CHECKS, *ORACLE_CHECKS)


def self_check(place: Place) -> Iterator[CheckResult]:
    """Run all checks and yield their results one by one.

    Closed forms come first, as they catch errors that two derivatives of the same code would share; then properties
    that hold for any network; then other libraries. These are optional: without them their checks are inconclusive,
    which does not count as passed.

    Args:
        place: The dtype and the device to check.

    Yields:
        One result for each of `CHECKS`; a check that raises has failed and does not stop the others.

    Example:
        >>> import torch
        >>> next(self_check(Place(torch.float64, torch.device("cpu")))).passed
        True
    """
    for one in CHECKS:
        yield one(place)
