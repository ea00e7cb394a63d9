"""The examples in docstrings run, in every module of the five folders."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    f"lossscope.{folder}.{path.stem}"
    for folder in ("optimizer", "probes", "landscape", "reports", "cli")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem != "__init__"
]
WITH_EXAMPLES = [
    name for name in MODULES if ">>> " in (ROOT / Path(*name.split(".")[1:])).with_suffix(".py").read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_lists_its_public_names(name: str) -> None:
    module = import_module(name)
    assert (module.__doc__ or "").strip()
    for public in module.__all__:
        assert hasattr(module, public)
