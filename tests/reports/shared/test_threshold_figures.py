"""Figures of sharpness with the thresholds that hold."""

from __future__ import annotations

import pytest

from lossscope.reports import render, sharpness
from lossscope.reports.shared.threshold_figures import eigenvalue_figure, thresholds_in_words

SGD = {"class": "torch.optim.sgd.SGD", "rule": None}


def facts(batch: int, **settings: float) -> dict[str, object]:
    groups = [{"parameters": ["0.weight"], "settings": {"lr": 1e-3, **settings}}]
    return {"optimizer_facts": {**SGD, "groups": groups}, "config": {"batch_size": batch}, "training_samples": 100}


@pytest.fixture
def mixed(write_run):
    """Return gradient descent, heavy ball, and SGD on minibatches."""
    return [
        write_run("gd", "gd", **facts(100)),
        write_run("heavy", "heavy", **facts(100, momentum=0.9)),
        write_run("sgd", "sgd", **facts(10)),
    ]


def test_each_arm_has_its_own_dashed_line_over_the_whole_run_or_a_reason(mixed) -> None:
    figure = eigenvalue_figure(mixed)
    dashed = {line.name: line for line in figure.curves if line.dashed}
    assert dashed["gd"].median == pytest.approx([2000.0] * 8)
    assert dashed["heavy"].median == pytest.approx([3800.0] * 8)
    assert len(dashed) == 2
    assert dashed["gd"].x == next(line for line in figure.curves if line.name == "gd").x
    assert figure.styles == ("measured", "threshold: 2/η; 2(1+β)/η")
    assert "2/η (gd); 2(1+β)/η (heavy)" in figure.caption
    assert "No threshold is drawn for sgd: its steps use minibatches" in figure.caption
    assert [line.split("(threshold ")[1] for line in figure.summary if "(threshold" in line] == ["2/η)", "2(1+β)/η)"]
    assert figure.summary[-1].startswith("no threshold for sgd: its steps use minibatches")


def test_a_page_states_the_threshold_in_every_format(mixed) -> None:
    for format in ("text", "markdown", "html", "json"):
        shown = " ".join(render(sharpness(mixed[:1]), format).split())
        assert "2/η" in shown, format


def test_a_figure_of_minibatches_alone_has_no_line_and_no_legend_for_one(mixed) -> None:
    figure = eigenvalue_figure(mixed[2:])
    assert figure.styles is None
    assert not any(line.dashed for line in figure.curves)
    assert thresholds_in_words(mixed, "batch_sharpness") == ""
