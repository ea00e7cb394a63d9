"""Cross-entropy of a timm model on a folder of images with a folder for each class. Nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import torch

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.storage.files import folder_entries
from lossscope.landscape.training.user_code import error_summary
from lossscope.landscape.unrecorded.ready_loss import ReadyLoss, require_counts
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

__all__ = ["image_classifier"]

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def image_classifier(name: str, folder: Path, *, samples: int = 64, batch: int = 8) -> ReadyLoss:
    """Return the mean cross-entropy over images, prepared as timm prepares them for an evaluation of the model.

    The classes are the folders in the order of their names, and the images are taken from them in turn.

    Args:
        name: Name of an architecture of timm, such as `resnet18`. It has as many classes as there are folders.
        folder: Folder with a folder of images for each class.
        samples: Images at most.
        batch: Images in a forward pass.

    Raises:
        ConfigError: timm is not installed, the name is unknown, there are no images, or one cannot be read.
    """
    require_counts(samples=samples, batch=batch)
    classes = _classes(folder)
    model, transform = _model(name, len(classes))
    chosen = _in_turn(list(classes.values()))[:samples]
    images = torch.stack([_image(file, transform) for _, file in chosen])
    labels = torch.tensor([label for label, _ in chosen])
    batches = list(zip(torch.split(images, batch), torch.split(labels, batch), strict=True))
    details = {"images": folder.name, "classes": len(classes), "samples": len(chosen), "batch": batch}
    return ReadyLoss(Objective(model, CrossEntropy(), batches), f"--timm {name}", details)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, both in the order of their names."""
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: there is no such folder")
    found = {
        one.name: [file for file in folder_entries(one) if file.suffix.lower() in _IMAGES]
        for one in folder_entries(folder)
        if one.is_dir() and not one.name.startswith(".")
    }
    empty = next((name for name, files in found.items() if not files), None)
    if not found or empty is not None:
        what = f"the folder {empty} has no image" if empty else "it has no folder"
        raise ConfigError(
            f"--images {folder} needs a folder of images for each class, and {what} ({', '.join(_IMAGES)})"
        )
    return found


def _model(name: str, classes: int) -> tuple[Any, Any]:
    """Return the model with random weights, and the transform of an image."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError("--timm needs timm: pip install 'lossscope[timm]'") from error
    except RuntimeError as error:  # a torchvision that was built for another torch
        raise ConfigError(
            f"timm cannot be loaded: {error_summary(error)}; install the torchvision of your torch"
        ) from error
    if not timm.is_model(name):  # also names with a colon, which would be downloaded
        close = get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has the names"
        raise ConfigError(f"--timm {name[:60]} is no model of timm; {hint}")
    fused = timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)
    timm.layers.set_fused_attn(False)  # fused attention has no second derivatives
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name, pretrained=False, num_classes=classes).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    except Exception as error:  # of timm, whose models raise what they like
        raise ConfigError(f"--timm {name} cannot be built for {classes} classes: {error_summary(error)}") from error
    finally:
        timm.layers.set_fused_attn(*fused)
    return model, transform


def _in_turn(classes: Sequence[Sequence[Path]]) -> list[tuple[int, Path]]:
    """Return the images with their labels, one of each class in turn."""

    def turns() -> Iterator[tuple[int, Path]]:
        for files in zip_longest(*classes):
            yield from ((label, file) for label, file in enumerate(files) if file is not None)

    return list(turns())


def _image(file: Path, transform: Any) -> torch.Tensor:
    """Return an image as the model takes it."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            found: torch.Tensor = transform(image.convert("RGB"))
            return found
    except Exception as error:  # a damaged image raises errors of many classes
        raise ConfigError(f"{file} is no image that can be read: {error_summary(error)}; move it away") from error
