"""The errors a user of an optimizer can mend."""

from lossscope.errors import LossscopeError

__all__ = ["OptimizerError"]


class OptimizerError(LossscopeError, ValueError):
    """A setting, a parameter or a call that the optimizer cannot work with; one sentence says what to do."""
