"""Heat maps of spectral entropy: cells, scale, noise, their text and their drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import render, spectral_entropy
from lossscope.reports.entropy.heat_maps import entropy_maps
from lossscope.reports.entropy.layer_table import spectra_by_layer_table
from lossscope.reports.render.drawing import draw_figure, figure_svg

RANK = 8
NOISE = 0.9  # entropy over ln r of white noise
STEPS = (1, 10, 100)


def rows(seed: int, before: str = "whitened") -> Iterator[dict[str, object]]:
    """Yield two matrices, one of two slices: entropies fall before Newton-Schulz and stay near 1 after it."""
    for place, (name, part) in enumerate((("b", None), ("a", 0), ("a", 1))):
        for number, step in enumerate(STEPS):
            for kind, entropy in ((before, 0.8 - 0.2 * number - 0.05 * place + 0.02 * seed), ("orthogonal", 0.98)):
                excess = (NOISE - entropy) * math.log(RANK)
                row = {"step": step, "tensor": name, "slice": part, "object": kind, "values": [1.0] * RANK}
                yield {**row, "entropy_energy": entropy, "excess_order": excess}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Run]:
    def run(name: str, arm: str = "muon", seed: int = 0, spectra: list[dict[str, object]] | None = None) -> Run:
        store = RunStore.create(tmp_path / name, {"arm": arm, "seeds": {"init": seed}})
        for row in rows(seed) if spectra is None else spectra:
            store.append("spectra", row)
        store.close("finished", "done")
        return Run.open(tmp_path / name)

    return run


def test_a_cell_is_the_median_over_seeds_and_noise_stands_beside_its_matrix(written: Callable[..., Run]) -> None:
    (figure,) = entropy_maps([written(f"s{seed}", seed=seed) for seed in (0, 1, 5)])
    assert figure.rows == ("b", "a[0]", "a[1]")  # the order of the model
    assert figure.columns == STEPS
    before, after = figure.panels
    assert before.values[1] == pytest.approx((0.77, 0.57, 0.37))
    assert after.values == ((0.98,) * 3,) * 3
    assert before.beside == pytest.approx((NOISE,) * 3)
    assert figure.color.limits == (0.3, 1.0)
    assert "0.30 to 1.0" in figure.caption


def test_one_scale_holds_for_every_arm(written: Callable[..., Run]) -> None:
    high = [{**row, "entropy_energy": 0.95} for row in rows(0)]
    maps = entropy_maps([written("low"), written("high", arm="ars2", spectra=high)])
    assert [one.color.limits for one in maps] == [(0.3, 1.0)] * 2
    assert len({one.key for one in maps}) == 2


def test_the_input_of_newton_schulz_is_preferred_to_the_whitened_momentum(written: Callable[..., Run]) -> None:
    other = [{**row, "entropy_energy": 0.5} for row in rows(0, "whitened") if row["object"] == "whitened"]
    (figure,) = entropy_maps([written("a", spectra=[*other, *rows(0, "source")])])
    assert figure.panels[0].values[0] == pytest.approx((0.8, 0.6, 0.4))


def test_an_optimizer_that_does_not_orthogonalize_has_no_map(written: Callable[..., Run]) -> None:
    plain = [row for row in rows(0) if row["object"] != "orthogonal"]
    assert entropy_maps([written("a", spectra=plain)]) == ()


def test_a_missing_cell_is_empty_in_every_form(written: Callable[..., Run]) -> None:
    cut = [row for row in rows(0) if (row["tensor"], row["step"], row["object"]) != ("b", 10, "whitened")]
    run = written("a", spectra=cut)
    (figure,) = entropy_maps([run])
    assert figure.panels[0].values[0] == (pytest.approx(0.8), None, pytest.approx(0.4))
    assert "before ▆·▂ 0.400  after ███ 0.980  noise 0.900" in figure.summary[1]
    axes = draw_figure(figure).axes
    cells = axes[0].collections[0].get_array()
    assert np.ma.getmaskarray(cells)[0].tolist() == [False, True, False]
    drawn = json.loads(render(spectral_entropy([run]), "json"))["figures"]["entropy_map"]
    assert drawn["kind"] == "heat_map"
    assert drawn["panels"][0]["values"][0][1] is None


def test_panels_share_their_colors_and_no_pixels_are_embedded(written: Callable[..., Run]) -> None:
    (figure,) = entropy_maps([written("a")])
    axes = draw_figure(figure).axes
    meshes = [mesh for ax in axes[:2] for mesh in ax.collections]
    assert len(meshes) == 4  # cells and noise of both panels
    assert {mesh.get_clim() for mesh in meshes} == {figure.color.limits}
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["b", "a[0]", "a[1]"]
    svg = figure_svg(figure)
    assert "<image" not in svg
    assert svg == figure_svg(figure)


def test_many_matrices_and_steps_are_thinned_and_said_so(written: Callable[..., Run]) -> None:
    spectra = [
        {**row, "tensor": f"layer {number:02}", "slice": None, "step": step}
        for row in rows(0)
        if row["tensor"] == "b" and row["step"] == 1
        for number in range(30)
        for step in range(100)
    ]
    (figure,) = entropy_maps([written("a", spectra=spectra)])
    assert (len(figure.rows), len(figure.columns)) == (24, 40)
    assert (figure.columns[0], figure.columns[-1]) == (0, 99)
    assert "6 more matrices are not drawn" in figure.caption


def cells(run: Run) -> dict[str, dict[str, object]]:
    """Return the table of matrices by matrix."""
    (table,) = spectra_by_layer_table([run])
    keys = [column.key for column in table.columns]
    return {str(row[1]): dict(zip(keys, row, strict=True)) for row in table.rows}


def test_the_table_of_matrices_has_last_values_beside_noise(written: Callable[..., Run]) -> None:
    shown = {"stable_rank": 3.0, "orthogonality_defect": 0.25}
    more = [{**row, **shown} for row in rows(0)]
    more += [{**row, "object": "movement", "stable_rank": 1.5} for row in rows(0) if row["object"] == "whitened"]
    row = cells(written("a", spectra=more))["a[1]"]
    assert (row["noise"], row["before"], row["after"]) == (pytest.approx(NOISE), pytest.approx(0.3), 0.98)
    assert (row["rank_before"], row["rank_movement"], row["defect"]) == (3.0, 1.5, 0.25)
    assert "rank_weight" not in row  # none was recorded


def test_a_run_without_spectra_has_no_table_of_matrices(written: Callable[..., Run]) -> None:
    assert spectra_by_layer_table([written("a", spectra=[])]) == ()


def test_steps_without_an_input_are_empty_columns(written: Callable[..., Run]) -> None:
    cut = [row for row in rows(0) if (row["step"], row["object"]) not in ((1, "whitened"), (10, "whitened"))]
    (figure,) = entropy_maps([written("a", spectra=cut)])
    assert figure.columns == STEPS
    assert figure.panels[0].values[0] == (None, None, pytest.approx(0.4))
