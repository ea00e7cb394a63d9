"""`image_classifier`: the loss of a timm model on a folder of images (extra `timm`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lossscope.landscape import Run, measure
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.unrecorded.timm_images import image_classifier

try:
    import timm
    from PIL import Image
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    pytest.skip(f"needs the extra timm, with the torchvision of this torch: {error}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")
NAME = "test_resnet.r160_in1k"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, count in (("cat", 3), ("dog", 1), ("eel", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(count):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{n}.png")
    return tmp_path / "images"


def test_the_loss_is_that_of_the_model_on_images_taken_in_turn(images: Path, tmp_path: Path) -> None:
    found = image_classifier(NAME, images, samples=5, batch=2)
    assert found.details == {"images": "images", "classes": 3, "samples": 5, "batch": 2}
    labels = torch.cat([labels for _, labels in found.objective.data.batches])
    assert labels.tolist() == [0, 1, 2, 0, 2]
    model = timm.create_model(NAME, num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "step_7.pt")
    pixels = torch.cat([pixels for pixels, _ in found.objective.data.batches])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    assert torch.equal(pixels[1], transform(Image.open(images / "dog" / "0.png")))
    measure(tmp_path / "step_7.pt", into=tmp_path / "run", objective=found.objective, measures=["loss"])
    known = float(F.cross_entropy(model(pixels), labels))
    assert Run.open(tmp_path / "run").probes["value"].tolist() == pytest.approx([known], rel=1e-5)


def empty(folder: Path) -> None:
    (folder / "fox").mkdir()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda folder: None, "resnet81", r"--timm resnet81 is no model of timm; did you mean resnet"),
        (lambda folder: None, "hf-hub:timm/resnet18", r"is no model of timm"),
        (lambda folder: (folder / "cat" / "0.png").write_bytes(b"no"), NAME, r"cat/0.png is no image that can be read"),
        (empty, NAME, r"needs a folder of images for each class, and the folder fox has no image"),
        (lambda folder: folder.rename(folder.with_name("moved")), NAME, r"there is no such folder"),
    ],
)
def test_what_cannot_be_read_is_one_line(change: Callable[[Path], object], name: str, words: str, images: Path) -> None:
    change(images)
    with pytest.raises(ConfigError, match=words):
        image_classifier(name, images)
