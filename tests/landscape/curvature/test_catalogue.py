"""The list of measures."""

from __future__ import annotations

import pytest

from lossscope.landscape.curvature.catalogue import CALLS, MEASURES, call_of
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.reprobe.selection import select_measures

KNOWN = {measure.name: measure for measure in MEASURES}


def test_names_are_unique_and_none_is_the_name_of_another_ones_call():
    assert len(KNOWN) == len(MEASURES)
    assert all(KNOWN[name].call == name for name in KNOWN if name in CALLS)


def test_the_bound_of_an_extreme_eigenvalue_says_which_side_is_open():
    assert "never above the eigenvalue" in KNOWN["lambda_max"].bound
    assert "no eigenvalue lies above value + bound" in KNOWN["lambda_max"].bound
    assert "never below the eigenvalue" in KNOWN["lambda_min"].bound
    assert "no eigenvalue lies below value - bound" in KNOWN["lambda_min"].bound
    assert "95 % confidence" in KNOWN["lambda_max"].bound


def test_a_row_of_a_block_belongs_to_the_call_that_measures_blocks():
    assert call_of("trace") == "spectrum"
    assert call_of("trace", "0.weight") == "per_module"
    assert call_of("a measure of a later version") == "a measure of a later version"


def test_a_name_stands_for_a_measure_or_for_all_of_a_call():
    assert select_measures(["trace", "metric"], "lossscope") == {
        "spectrum": ("trace",),
        "metric": ("preconditioned_sharpness", "preconditioned_edge_ratio"),
    }
    assert set(select_measures(None, "lossscope")) == {
        "loss",
        "spectrum",
        "metric",
        "adaptive_trace",
        "log_fisher_rao",
        "logits",
        "radial",
    }
    assert select_measures(None, "pyhessian") == {"spectrum": ("lambda_max", "trace")}


@pytest.mark.parametrize(
    ("names", "engine", "words"),
    [
        (["hessian"], "lossscope", "there is no measure 'hessian'"),
        (["sampling_eror"], "lossscope", "did you mean sampling_error"),
        (["direction"], "lossscope", "needs the step that was taken"),
        (["spectrum"], "pyhessian", "pyhessian has no lambda_min: ask for lambda_max"),
    ],
)
def test_a_name_that_cannot_be_measured_is_refused(names, engine, words):
    with pytest.raises(ConfigError, match=words):
        select_measures(names, engine)
