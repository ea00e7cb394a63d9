"""Loss of `lossscope measure`: a function in a file, or a ready one of Hugging Face or timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lossscope.landscape.unrecorded.loss import CheckpointLoss
    from lossscope.landscape.unrecorded.ready_loss import ReadyLoss

__all__ = ["LossSource", "chosen_loss"]

_OF: Final[Mapping[str, tuple[str, ...]]] = {  # options that belong to a source
    "objective": (),
    "hf": ("text", "samples", "batch", "sequence"),
    "timm": ("images", "samples", "batch"),
}


@dataclass(frozen=True)
class LossSource:
    """Options that name the loss; None where they are not given."""

    objective: str | None
    hf: Path | None
    text: Path | None
    timm: str | None
    images: Path | None
    samples: int | None
    batch: int | None
    sequence: int | None


def chosen_loss(source: LossSource, measures: str | None, effort: tuple[Any, ...]) -> CheckpointLoss | None:
    """Return the loss; None without one, so that torch is not loaded.

    Args:
        source: The options that name it.
        measures: Names of measures, separated by commas.
        effort: Arguments of `solver_options`.

    Raises:
        ConfigError: Options contradict each other, or the loss cannot be made.
    """
    from lossscope.landscape.errors import ConfigError

    _check_use(source)
    if source.objective is None and source.hf is None and source.timm is None:
        if measures is not None:
            raise ConfigError(
                f"--measures {measures} are of a loss: give one by --objective FILE.py:NAME, --hf or --timm, or leave "
                "--measures out for the matrices alone"
            )
        return None
    from lossscope.cli.probe import measure_names, solver_options
    from lossscope.landscape.unrecorded.loss import checkpoint_loss

    names = None if measures is None else measure_names(measures)
    options = solver_options(*effort)
    if source.objective is not None:
        return checkpoint_loss(source.objective, names, options)
    ready = _ready(source)
    return checkpoint_loss(ready.objective, names, options, ready.place, ready.details)


def _check_use(source: LossSource) -> None:
    """Reject two sources, a source without its data, and options that the source does not have."""
    from lossscope.landscape.errors import ConfigError

    named = [name for name in _OF if getattr(source, name) is not None]
    if len(named) > 1:
        raise ConfigError(f"--{named[0]} and --{named[1]} are two losses: give one of them")
    own = _OF[named[0]] if named else ()
    for name in dict.fromkeys(option for options in _OF.values() for option in options):
        if getattr(source, name) is not None and name not in own:
            owners = " or ".join(f"--{one}" for one, options in _OF.items() if name in options)
            raise ConfigError(f"--{name} belongs to {owners}: give that, too, or leave --{name} out")
    for owner, data, kind in (("hf", "text", "FILE"), ("timm", "images", "FOLDER")):
        if owner in named and getattr(source, data) is None:
            raise ConfigError(f"--{owner} needs --{data} {kind}, on which the loss is measured")


def _ready(source: LossSource) -> ReadyLoss:
    """Return the loss of a model of Hugging Face or timm."""
    given = {name: getattr(source, name) for name in ("samples", "batch", "sequence")}
    settings = {name: value for name, value in given.items() if value is not None}
    if source.hf is not None and source.text is not None:
        from lossscope.landscape.unrecorded.hugging_face import causal_lm

        return causal_lm(source.hf, source.text, **settings)
    from lossscope.landscape.unrecorded.timm_images import image_classifier

    return image_classifier(str(source.timm), Path(str(source.images)), **settings)
