"""Spectral densities of recorded runs, and the signed logarithmic axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lossscope.landscape.analysis.density import Density, SignedLog, densities, last_density
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

AXIS = SignedLog(0.01)


def density(nodes, weights, settled, size=100) -> Density:
    return Density(4, np.array(nodes), np.array(weights), np.array(settled), size)


@given(st.floats(-1e6, 1e6))
def test_the_place_of_a_value_leads_back_to_it(value):
    assert AXIS.value(AXIS.place(np.array([value])))[0] == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_places_are_those_of_matplotlibs_symlog_axis():
    from matplotlib.scale import SymmetricalLogTransform

    values = np.array([-50.0, -0.01, -0.003, 0.0, 1e-5, 0.01, 0.011, 7.0])
    theirs = SymmetricalLogTransform(base=10, linthresh=0.01, linscale=1.0).transform(values) / 0.01
    assert AXIS.place(values) == pytest.approx(theirs)


def test_the_masses_add_up_and_an_eigenvalue_that_is_known_counts_one():
    found = density([-1.0, 0.0, 3.0], [[0.2, 0.7, 0.1], [0.4, 0.5, 0.1]], [False, False, True])
    assert found.masses.sum() == pytest.approx(100)
    assert found.masses[2] == 1
    assert found.masses[0] / found.masses[1] == pytest.approx(0.3 / 0.6)


def test_the_curve_integrates_to_the_number_of_eigenvalues_that_do_not_stand_alone():
    found = density([-1.0, -0.001, 0.02, 3.0], [[0.2, 0.6, 0.1, 0.1]], [False, False, False, True])
    places = np.linspace(-8, 8, 4001)
    number, error = found.bulk(AXIS, places, 0.1)
    assert number.sum() * (places[1] - places[0]) == pytest.approx(99, rel=1e-6)
    assert (error >= 0).all()


def test_the_error_of_the_curve_is_that_of_random_directions():
    # n equal eigenvalues are known exactly from any direction; half of them elsewhere are not
    alone = density([1.0, 2.0], [[1.0, 0.0]], [False, False], size=50)
    place = AXIS.place(np.array([1.0]))
    assert alone.bulk(AXIS, place, 0.1)[1] == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        x = rng.standard_normal(50)
        share = (x[:25] ** 2).sum() / (x**2).sum()
        found.append(density([1.0, 100.0], [[share, 1 - share]], [False, False], size=50).bulk(AXIS, place, 0.1)[0][0])
    half = density([1.0, 100.0], [[0.5, 0.5]], [False, False], size=50)
    assert half.bulk(AXIS, place, 0.1)[1][0] == pytest.approx(np.std(found), rel=0.05)


def run_with(path, sets, data_hash="own") -> Run:
    store = RunStore.create(path, {"data_hash": data_hash})
    for step, hashed, node in sets:
        for probe in (0, 1):
            row = {"nodes": [node, 9.0], "weights": [0.5, 0.5], "settled": [0.0, 1.0], "size": 10}
            store.append("densities", {"step": step, "probe": probe, "data_hash": hashed, "mode": "eval", **row})
    store.close("finished", "done")
    return Run.open(path)


def test_the_density_written_last_at_the_last_step_is_read_on_the_runs_own_data(tmp_path):
    sets = [(8, "own", 1.0), (8, "own", 2.0), (8, "other", 3.0), (9, "other", 4.0), (1, "own", 5.0)]
    found = last_density(run_with(tmp_path / "a", sets))
    assert found is not None
    assert (found.step, found.nodes.tolist(), found.size) == (8, [2.0, 9.0], 10)
    assert found.weights.shape == (2, 2)
    assert found.settled.tolist() == [False, True]


def test_every_density_of_the_runs_own_data_is_read_by_step(tmp_path):
    sets = [(8, "own", 1.0), (8, "own", 2.0), (9, "other", 4.0), (1, "own", 5.0), (4, "own", float("nan"))]
    found = densities(run_with(tmp_path / "a", sets))
    assert [(one.step, one.nodes[0]) for one in found] == [(1, 5.0), (8, 2.0)]
    assert densities(run_with(tmp_path / "b", [])) == ()


def test_counts_add_up_to_all_eigenvalues_with_single_ones_in_their_row():
    found = density([-1.0, -0.001, 0.02, 3.0], [[0.2, 0.6, 0.1, 0.1]] * 2, [False, False, False, True])
    edges = np.linspace(-10.0, 10.0, 41)
    number, error = found.counts(AXIS, edges, 0.1)
    assert number.sum() == pytest.approx(100, rel=1e-3)
    fine = np.linspace(-10.0, 10.0, 4001)
    bulk = found.bulk(AXIS, fine, 0.1)[0][:-1].reshape(40, 100).mean(1) * 0.5
    row = int(np.searchsorted(edges, AXIS.place(np.array([3.0]))[0])) - 1
    single = np.zeros(40)
    single[row] = 1
    assert number - bulk == pytest.approx(single, abs=0.5)
    assert number[row] - bulk[row] > 0.9
    assert (error >= 0).all()


def test_a_run_without_a_density_has_none(tmp_path):
    assert last_density(run_with(tmp_path / "a", [])) is None
