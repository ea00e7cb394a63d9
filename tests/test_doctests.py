"""The examples in docstrings run, in every module of the five folders and of their rooms."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(("lossscope", *path.relative_to(ROOT).with_suffix("").parts)): path
    for folder in ("optimizer", "probes", "landscape", "reports", "cli")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.stem != "__init__"
}
WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text()]


def test_modules_of_every_room_are_found() -> None:
    rooms = {
        path.parent for folder in ("optimizer", "probes", "landscape", "reports") for path in _rooms(ROOT / folder)
    }
    assert rooms <= {path.parent for path in MODULES.values()}
    assert WITH_EXAMPLES


def _rooms(folder: Path) -> list[Path]:
    """Return the `__init__.py` of every room of a folder."""
    return list(folder.glob("*/__init__.py"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_lists_its_public_names(name: str) -> None:
    if ".integrations." in name:
        pytest.importorskip(name.rpartition(".")[2].replace("hugging_face", "transformers"))
    module = import_module(name)
    assert (module.__doc__ or "").strip()
    for public in module.__all__:
        assert hasattr(module, public)
