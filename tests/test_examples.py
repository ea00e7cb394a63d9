"""The examples run as they stand, are short, leave a figure, and print what they claim."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

Run = Callable[[str], tuple[str, Path]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that returns the output of an example and the folder it ran in; each runs once, in this process.

    Warnings are errors here as in all tests.
    """

    @cache
    def ran(stem: str) -> tuple[str, Path]:
        folder, printed = tmp_path_factory.mktemp(stem), io.StringIO()
        (example,) = (path for path in EXAMPLES if path.stem == stem)
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            runpy.run_path(str(example), run_name="__main__")
        return printed.getvalue(), folder

    return ran


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("stem", [example.stem for example in EXAMPLES])
def test_an_example_runs_without_a_warning_and_leaves_its_figure(stem: str, run: Run) -> None:
    _, folder = run(stem)
    (picture,) = folder.glob("*.png")
    assert picture.stem == stem
    assert picture.stat().st_size > 10_000


def test_on_rosenbrock_all_but_a_fixed_radius_end_in_the_minimum(run: Run) -> None:
    printed, _ = run("rosenbrock")
    ends = {name: (float(loss), float(x)) for name, loss, x in re.findall(r"(\S+) +loss (\S+) at \((\S+),", printed)}
    assert set(ends) == {"sgd", "adamw", "ars2-base", "sam"}
    for name in ("sgd", "adamw", "ars2-base"):
        assert ends[name][0] < 1e-5, name
        assert ends[name][1] == pytest.approx(1, abs=2e-3), name
    assert 1e-6 < ends["sam"][0] < 1  # from 24.2


def test_gradient_descent_ends_at_the_edge_of_stability(run: Run) -> None:
    printed, _ = run("edge_of_stability")
    start, end, edge = map(float, re.findall(r"\d+\.\d+", printed))
    assert start < 0.8 * edge
    assert end == pytest.approx(edge, rel=0.05)


def test_a_rescaling_moves_raw_sharpness_alone(run: Run) -> None:
    printed, _ = run("rescaled_network")
    ranges = re.findall(r"^(.+?) +from (\S+) to (\S+) of", printed, re.M)
    (raw, *others) = [(name, float(high) / float(low)) for name, low, high in ranges]
    assert raw[0] == "λ_max"
    assert raw[1] > 10
    assert len(others) == 3
    assert all(ratio == pytest.approx(1, abs=5e-3) for _, ratio in others)


def test_the_hessian_of_a_classifier_has_about_as_many_outliers_as_classes(run: Run) -> None:
    printed, _ = run("spectral_density")
    values = [float(word) for word in printed.splitlines()[0].split(": ")[1].split()]
    assert values[8] / values[9] > 2  # nine stand apart: the tenth is at the edge of the bulk


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_forty_lines(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 40
