"""User objective: an `Objective` returned by a function in the user's own file, `FILE.py:NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lossscope.errors import LossscopeError
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.user_code import called, error_summary, own_streams
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

__all__ = ["errors_of_loss", "evaluated_once", "objective_from"]


def objective_from(place: str) -> Objective:
    """Return the objective that the function NAME of FILE.py returns when called without arguments.

    This runs the file, as an import would; meanwhile the file's folder is on the import path.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: The file or name does not exist, the code raises, or it does not return an Objective.
    """
    found, call = called(place, option="--objective", example="probes/mine.py:objective")
    if not isinstance(found, Objective):
        raise ConfigError(
            f"{call} returned {type(found).__name__}, need a lossscope.probes.Objective: "
            "return Objective(model, loss_fn, batches)"
        )
    return found


def evaluated_once(objective: Objective, place: str, *, slope: bool) -> None:
    """Call the loss and its gradient once, so that errors of the user's code are reported before any measurement.

    A value that cannot be measured (not finite, say) passes: another checkpoint may have a finite one, and the
    measures report it.

    Args:
        objective: The objective from `place`, at the parameters of a checkpoint.
        place: `FILE.py:NAME`.
        slope: Whether derivatives are needed; a loss without derivatives is then rejected.

    Raises:
        ConfigError: The loss raised something, or does not depend on the parameters.
    """
    try:
        with errors_of_loss(place, "it is called as loss_fn(model, batch)"):
            objective.value()
    except ProbeError:
        return
    if not slope:
        return
    try:
        with errors_of_loss(place, of="the gradient of the loss"):
            objective.gradient()
    except ProbeError as error:
        raise ConfigError(f"loss of {place}: {error}") from error


@contextmanager
def errors_of_loss(place: str, hint: str = "", of: str = "loss") -> Iterator[None]:
    """Turn whatever the user's loss raises within the context into a ConfigError, and keep the standard streams.

    Errors of the probes pass, as does an interrupt.

    Args:
        place: `FILE.py:NAME`.
        hint: What the message adds.
        of: What raised, in words.

    Raises:
        ConfigError: The code raised something.
    """
    try:
        with own_streams():
            yield
    except (LossscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise ConfigError(f"{of} of {place} raised {error_summary(error)}{f'; {hint}' if hint else ''}") from error
