"""Selection of measures by name, and suggestions for unknown names."""

from __future__ import annotations

import pytest

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import known_measures, limit_of
from lossscope.landscape.reprobe.selection import select_measures


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        select_measures([name], "lossscope")
    return str(error.value)


@pytest.mark.parametrize("name", ["directional_edge_ratio", "directional_sharpness", "direction"])
def test_what_needs_the_step_says_so_under_each_of_its_names(name):
    said = refused(name)
    assert said.startswith(name)
    assert "needs the step that was taken" in said
    assert "recorded during training only" in said


@pytest.mark.parametrize("name", ["lambda_mx", "edge_rato", "directional_sharpnes", "tracee", "Spectrum", "xyz"])
def test_a_suggestion_can_be_probed_or_is_told_to_need_the_step(name):
    said = refused(name)
    assert f"unknown measure {name!r}" in said
    _, found, suggested = said.partition("did you mean ")
    if found:
        for one in suggested.rstrip("?").split(" or "):
            assert select_measures([one], "lossscope")
    else:
        assert "needs the step" in said or "lossscope list measures" in said


def test_pyhessian_is_asked_for_what_it_has():
    assert select_measures(None, "pyhessian") == {"spectrum": ("lambda_max", "trace")}
    assert select_measures(["density"], "pyhessian") == {"spectrum": ("density",)}


def test_what_precision_hangs_on_is_known_of_every_measure():
    limits = {name: limit_of(name) for name in known_measures()}
    assert {name for name, limit in limits.items() if limit == "depth"} == {
        "density",
        "negative_mass",
        "effective_rank",
        "participation_ratio",
    }
    assert {name for name, limit in limits.items() if limit == "batches"} == {
        "batch_sharpness",
        "batch_sharpness_ratio_of_means",
        "sam_sharpness",
        "adaptive_sam_sharpness",
    }
    assert {limits[name] for name in ("loss", "log_fisher_rao", "theta_hessian_theta", "directional_edge_ratio")} == {
        "exact"
    }
    assert {limits[name] for name in ("lambda_max", "trace", "trace_share", "preconditioned_edge_ratio")} == {"effort"}
