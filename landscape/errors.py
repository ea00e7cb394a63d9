"""Errors that a user can fix. Messages are one line: the value given, the values allowed, and what to do."""

from lossscope.errors import LossscopeError

__all__ = ["ConfigError", "LandscapeError", "RecordingWarning", "RunError", "SchemaError", "TrainingError"]


class LandscapeError(LossscopeError):
    """Base class of the errors below. The command line prints them as one line and exits with status 1."""


class ConfigError(LandscapeError):
    """A setting is unknown, has the wrong type or is out of bounds."""


class RunError(LandscapeError):
    """A run folder cannot be created, opened or read."""


class SchemaError(RunError):
    """A run was written by a newer version of lossscope."""


class TrainingError(LandscapeError):
    """A training run ended early. Everything recorded until then is kept."""


class RecordingWarning(UserWarning):
    """Something could not be recorded; the training goes on."""
