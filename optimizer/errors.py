"""The errors a user of an optimizer can mend."""

__all__ = ["OptimizerError"]


class OptimizerError(ValueError):
    """A setting, a parameter or a call that the optimizer cannot work with; one sentence says what to do."""
