"""`lossscope surface`: fans and paths of runs and of files, their cost, their numbers, and wrong input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.errors import LossscopeError
from lossscope.landscape import TrainConfig, train

MINE = """
import torch
from lossscope.probes import CrossEntropy, Objective

def objective():
    torch.manual_seed(5)
    data = [(torch.randn(12, 3), torch.arange(12) % 2)]
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return Objective(net, CrossEntropy(), data)
"""

OTHER = """
import torch
from lossscope.landscape.training.workloads import digits_mlp
from lossscope.probes import CrossEntropy, Objective

def objective():
    return Objective(digits_mlp(), CrossEntropy(), [(torch.zeros(12, 64), torch.arange(12) % 10)])
"""
WALL = """
def wall(model, batch):
    weight = model[0].weight
    return CrossEntropy()(model, batch) - torch.log(weight.square().sum().mul(-1).add(2 * 3.2))

"""


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["surface", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("surface")
    (folder / "mine.py").write_text(MINE)
    for seed, name in enumerate(("a.pt", "b.pt", "c.pt")):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        torch.save(net.state_dict(), folder / name)
    train(TrainConfig.of({"workload": "digits-mlp", "steps": 4, "evaluations": 0, "name": "run", "out": str(folder)}))
    long = {
        "workload": "digits-mlp",
        "steps": 40,
        "evaluations": 0,
        "checkpoints": 4,
        "name": "long",
        "out": str(folder),
    }
    train(TrainConfig.of(long))
    return {name: str(folder / name) for name in ("a.pt", "b.pt", "c.pt", "run", "long")} | {
        "mine": f"{folder / 'mine.py'}:objective"
    }


SMALL = ("--points", "5", "--draws", "8")


def test_a_run_has_a_fan_on_its_own_data(places: dict[str, str]) -> None:
    text = invoke(places["run"], *SMALL, "--radius", "0.2")
    first = next(line for line in text.splitlines() if line.startswith(" fine"))
    assert "where each weight is off by 20 % of itself, the loss rises from" in " ".join(text.split())
    assert "run at step 4" in first
    found = json.loads(invoke(places["run"], *SMALL, "--radius", "0.2", "--format", "json"))
    assert found["kind"] == "surface"
    assert list(found["figures"]) == ["fan", "sharpest"]


def test_files_of_weights_have_fans_and_a_path(places: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "numbers.parquet"
    both = (places["a.pt"], places["b.pt"], "--objective", places["mine"])
    text = invoke(*both, *SMALL, "--data", str(data))
    assert "a.pt" in text
    frame = pd.read_parquet(data)
    assert set(frame["line"]) == {"loss", "quadratic model", "sharpest"}
    assert len(frame[(frame["line"] == "loss") & (frame["point"] == "a.pt")]) == 8 * 5
    assert frame.groupby("point")["x"].max().nunique() == 1  # one range for both
    text = " ".join(invoke(*both, "--plane", "path", "--points", "7", "--data", str(data), "--force").split())
    assert "a.pt to b.pt: " in text
    assert "for comparison, a.pt to a copy of it with permuted neurons: " in text
    assert "two seeds of the optimizer of a.pt: a file of weights names no run" in text
    assert "error of the samples" in text
    assert len(pd.read_parquet(data)) == 14
    text = invoke(*both, "--plane", "path", "--points", "7", "--no-null", "--data", str(data), "--force")
    assert "permuted neurons:" not in " ".join(text.split())
    assert len(pd.read_parquet(data)) == 7


def test_the_page_has_the_figures(places: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "fan.html"
    invoke(places["a.pt"], "--objective", places["mine"], *SMALL, "--format", "html", "--output", str(page))
    assert page.read_text().count("<svg") >= 2


@pytest.mark.parametrize("plane", ["random", "eigen", "points", "pca"])
def test_planes_have_cells_and_say_what_they_cannot_show(plane: str, places: dict[str, str], tmp_path: Path) -> None:
    data, page = tmp_path / "cells.parquet", tmp_path / "plane.html"
    files = [places[one] for one in ("a.pt", "b.pt", "c.pt")[: 3 if plane in ("points", "pca") else 1]]
    given = (*files, "--objective", places["mine"], "--plane", plane, "--points", "5")
    given += ("--draws", "2") * (plane == "random")
    invoke(*given, "--data", str(data), "--format", "html", "--output", str(page))
    frame = pd.read_parquet(data)
    assert list(frame.columns) == ["plane", "x", "y", "loss"]
    assert len(frame) == 25 * (2 if plane == "random" else 1)
    assert "<svg" in page.read_text()
    text = " ".join(invoke(*given).split())
    words = {"random": "Each plane is one draw", "eigen": "The two sharpest directions"}
    assert words.get(plane, "losses on the plane, where") in text
    assert json.loads(invoke(*given, "--format", "json"))["figures"]["plane"]["kind"] == "contours"


def test_the_checkpoints_of_a_run_have_principal_components(places: dict[str, str]) -> None:
    text = " ".join(invoke(places["long"], "--plane", "pca", "--points", "3").split())
    assert "% of the variance of the checkpoints; a random walk with the same steps has" in text
    assert "long at step 0" in text


def test_the_checkpoints_of_a_run_are_shown_on_planes_of_other_directions(places: dict[str, str]) -> None:
    for plane in ("random", "eigen"):
        found = json.loads(invoke(places["long"], "--plane", plane, "--points", "3", "--format", "json"))
        figure = found["figures"]["plane"]
        planes = len(figure["panels"])
        panels = range(planes) if planes > 1 else [None]
        assert [one["panel"] for one in figure["marks"]] == [panel for panel in panels for _ in range(4)]
        assert figure["lines"] == []
        assert figure["marks"][3]["distance"] < 1e-4 < figure["marks"][0]["distance"]
        assert {row["line"] for row in found["tables"]["trainings"]["rows"]} == {"points"}


def test_several_runs_share_a_picture(places: dict[str, str]) -> None:
    text = " ".join(invoke(places["long"], places["run"], "--plane", "pca", "--points", "3").split())
    assert "long, run share this picture: one architecture, one loss" in text
    assert "of the variance of its 4 checkpoints lies along the plane" in text
    assert "random walk with the same steps" not in text  # two trainings are none


def test_files_in_an_order_are_one_training(places: dict[str, str]) -> None:
    files = [places[one] for one in ("a.pt", "b.pt", "c.pt")]
    text = " ".join(invoke(*files, "--objective", places["mine"], "--plane", "pca", "--points", "3").split())
    assert "files in the order given: 100 % of the variance of its 3 checkpoints" in text
    assert "three checkpoints lie in a plane whatever the training did" in text


def test_other_data_than_those_of_a_run_are_told(places: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(OTHER)
    text = " ".join(invoke(places["run"], "--objective", f"{other}:objective", *SMALL, "--radius", "0.1").split())
    assert "Run run was recorded on other data (" in text
    assert "its losses here are not those of its training" in text
    assert "other data" not in invoke(places["run"], *SMALL, "--radius", "0.1")


def test_figures_are_saved_as_pictures(places: dict[str, str], tmp_path: Path) -> None:
    mine = (places["a.pt"], "--objective", places["mine"])
    invoke(*mine, *SMALL, "--radius", "0.1", "--picture", str(tmp_path / "fan.svg"))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fan-sharpest.svg", "fan.svg"]
    assert "invariant under every diagonal rescaling" in (tmp_path / "fan.svg").read_text()
    invoke(*mine, "--plane", "eigen", "--points", "3", "--3d", "--picture", str(tmp_path / "plane.png"))
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_to_turn_needs_its_package_before_anything_is_evaluated(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    given = (places["a.pt"], "--objective", places["mine"], "--plane", "eigen", "--points", "3")
    with pytest.raises(LossscopeError, match=r"pip install 'lossscope\[interactive\]'"):
        invoke(*given, "--interactive", str(tmp_path / "turn.html"), "--output", str(tmp_path / "text"))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_zero_are_said_not_to_move(places: dict[str, str], tmp_path: Path) -> None:
    state = torch.load(places["a.pt"])
    state["2.weight"].zero_()
    torch.save(state, tmp_path / "zero.pt")
    given = (str(tmp_path / "zero.pt"), "--objective", places["mine"])
    text = " ".join(invoke(*given, *SMALL, "--radius", "0.1").split())
    assert "All weights of 2.weight are zero, which relative directions do not move." in text
    text = " ".join(invoke(*given, "--plane", "random", "--points", "3").split())
    assert "Filters of 2.weight are zero, which filter-normalized directions do not move." in text
    assert "0.bias, 2.bias have one dimension" in text


def test_a_loss_that_is_infinite_nearby_leaves_holes(places: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "wall.py"
    other.write_text(MINE.replace("CrossEntropy()", "wall").replace("def objective", WALL + "def objective"))
    given = (places["a.pt"], "--objective", f"{other}:objective")
    for plane in ("random", "eigen"):
        text = " ".join(invoke(*given, "--plane", plane, "--points", "5", "--radius", "3").split())
        assert re.search(r"the loss is not finite in \d+ of \d+ cells, which are left empty", text)
        picture = str(tmp_path / f"{plane}.png")
        invoke(*given, "--plane", plane, "--points", "5", "--radius", "3", "--3d", "--picture", picture)
    text = " ".join(invoke(*given, *SMALL, "--radius", "2").split())
    assert "the loss is not finite in" in text


def test_one_sample_has_every_picture_and_no_sampling_error(places: dict[str, str], tmp_path: Path) -> None:
    one = tmp_path / "one.py"
    one.write_text(MINE.replace("torch.randn(12, 3), torch.arange(12) % 2", "torch.randn(1, 3), torch.zeros(1).long()"))
    for plane, files in {"fan": 1, "path": 2, "random": 1, "eigen": 1, "pca": 3, "points": 3}.items():
        given = [places[name] for name in ("a.pt", "b.pt", "c.pt")[:files]]
        text = " ".join(invoke(*given, "--objective", f"{one}:objective", "--plane", plane, "--points", "5").split())
        assert "mean over 1 samples" in text
        assert ("an error over samples needs at least 8 of them, got 1" in text) == (plane == "path")


@pytest.mark.parametrize("plane", ["fan", "random", "pca"])
def test_a_call_that_was_stopped_goes_on_and_says_so(
    plane: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossscope.landscape.surfaces.kept_cells._SECONDS", -1.0)
    files = [places[one] for one in (("a.pt", "b.pt", "c.pt") if plane == "pca" else ("a.pt",))]
    given = (*files, "--objective", places["mine"], "--plane", plane, "--points", "5")
    given += ("--radius", "0.1") * (plane != "pca")
    whole, data = tmp_path / "whole.parquet", tmp_path / "here" / "data.parquet"
    data.parent.mkdir()
    invoke(*given, "--data", str(whole))
    (tmp_path / "surface-cells").rename(tmp_path / "other")

    def killed(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lossscope.landscape.surfaces.saved_data.pd.DataFrame.to_parquet", killed)
        stopped = CliRunner().invoke(app, ["surface", *given, "--data", str(data)])
    assert stopped.exit_code
    assert not data.exists()
    text = " ".join(invoke(*given, "--data", str(data)).split())
    count = {"fan": 128, "random": 75, "pca": 25}[plane]
    assert f"{count} losses are those of an earlier call, kept in" in text
    pd.testing.assert_frame_equal(pd.read_parquet(data), pd.read_parquet(whole))


@pytest.mark.slow
def test_several_processes_write_the_numbers_of_one(places: dict[str, str], tmp_path: Path) -> None:
    given = (places["run"], "--plane", "random", "--points", "5", "--draws", "2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        invoke(*given, "--data", str(tmp_path / "one.parquet"))
        invoke(*given, "--data", str(tmp_path / "two.parquet"), "--jobs", "2")
    finally:
        torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "two")))


def test_the_cost_is_told_before(places: dict[str, str]) -> None:
    text = invoke(places["a.pt"], "--objective", places["mine"], *SMALL, "--radius", "0.1", "--dry-run")
    assert text.startswith("36 losses at most, about ")
    assert "8 Hessian products" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{a.pt}",), "weights alone have no loss: give one by --objective"),
        (
            ("{a.pt}", "--objective", "{mine}", "--plane", "path"),
            "--plane path needs at least two runs or files, got 1",
        ),
        (("{run}", "{run}", "--plane", "eigen"), "--plane eigen draws one run or file, got 2"),
        (("{run}", "--plane", "points"), "--plane points needs three runs or files, got 1"),
        (("{a.pt}", "{b.pt}", "--objective", "{mine}", "--plane", "pca"), "at least 3 checkpoints, got 2"),
        (("{run}", "{long}", "--plane", "pca", "--checkpoint", "0"), "at least 3 checkpoints, got 2"),
        (("{a.pt}", "{b.pt}", "{run}", "--objective", "{mine}", "--plane", "points"), "model"),
        (("{run}", "--plane", "random", "--radius", "0"), "radius must be above 0, got 0"),
        (("{run}", "--plane", "eigen", "--radius", "0"), "radius must be above 0, got 0"),
        (("{run}", "--radius", "0"), "radius must be above 0, got 0"),
        (("{run}", "--3d"), "--plane fan has no --3d"),
        (("{run}", "{run}", "--plane", "path", "--interactive", "x.html"), "--plane path has no --interactive"),
        (("{run}", "--picture", "x.jpg"), "--picture must end in .png or .svg, got x.jpg"),
        (("{run}", "--plane", "pca", "--radius", "1"), "--plane pca has no --radius"),
        (("{run}", "--plane", "eigen", "--draws", "3"), "--plane eigen has no --draws"),
        (("{run}", "{long}", "--plane", "path", "--jobs", "2"), "--plane path has no --jobs"),
        (("{long}", "--plane", "pca", "--checkpoint", "0"), "--plane pca has no --checkpoint"),
        (("{a.pt}", "--objective", "{mine}", "--draws", "0"), "draws must be at least 8"),
        (("{a.pt}", "--objective", "{mine}", "--points", "0"), "points must be odd"),
        (("nowhere",), "nowhere is neither a run nor a file of weights"),
        (("{run}", "--checkpoint", "77"), "has no checkpoint at step 77"),
        (("{a.pt}", "--objective", "{mine}", "--radius", "-1"), "radius must be above 0"),
        (("{a.pt}", "{run}"), "do not fit the model"),
    ],
)
def test_wrong_input_is_one_clear_line(places: dict[str, str], arguments: tuple[str, ...], words: str) -> None:
    given = [places.get(one.strip("{}"), one) for one in arguments]
    with pytest.raises(LossscopeError, match=words) as caught:
        invoke("--points", "5", *given)
    assert "\n" not in str(caught.value)


def test_a_picture_that_takes_hours_asks_first(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossscope.landscape.surfaces.several.loss_seconds", lambda found: 1e3)
    with pytest.raises(LossscopeError, match="add --yes, or take fewer --points or --draws"):
        invoke(places["a.pt"], "--objective", places["mine"], *SMALL)
    assert invoke(places["a.pt"], "--objective", places["mine"], *SMALL, "--yes")
