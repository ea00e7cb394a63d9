"""The errors a user can mend: one line with the value, the bound and what to do next."""

from lossscope.errors import LossscopeError

__all__ = ["ConfigError", "LandscapeError", "RunError", "SchemaError", "TrainingError"]


class LandscapeError(LossscopeError):
    """A known error. The command line prints it as one line and exits 1."""


class ConfigError(LandscapeError):
    """A setting that does not exist, has the wrong type or lies outside its bounds."""


class RunError(LandscapeError):
    """A run folder that cannot be created, opened or read."""


class SchemaError(RunError):
    """A run written by a newer lossscope than this one."""


class TrainingError(LandscapeError):
    """A training run that ended early; everything recorded until then is kept."""
