"""The root package: names that load on first use, one version, one root of all errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lossscope
from lossscope.errors import LossscopeError
from lossscope.landscape.errors import LandscapeError
from lossscope.optimizer import OptimizerError
from lossscope.probes import ProbeError


def test_every_listed_name_loads() -> None:
    assert {"ARS2Neo", "Objective", "Recorder", "Run", "create", "hessian", "measure_spectrum"} <= set(
        lossscope.__all__
    )
    assert all(getattr(lossscope, name) is not None for name in lossscope.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = lossscope.nothing


def test_all_errors_have_one_root() -> None:
    assert all(issubclass(error, LossscopeError) for error in (LandscapeError, OptimizerError, ProbeError))


def test_reading_a_run_loads_no_torch_and_the_start_loads_no_metadata() -> None:
    code = (
        "import sys; import lossscope.cli.main; started = set(sys.modules); from lossscope import Run; "
        "print('torch' in sys.modules, 'importlib.metadata' in started)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert lossscope.__version__ == version("lossscope")
