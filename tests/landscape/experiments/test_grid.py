"""Grids: what a TOML file may say, and the one line that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.experiments.grid import MEASURES, Grid, grid_of, read_grid, shipped_grids
from lossscope.landscape.experiments.grid_check import resolved_configs

ARMS: dict[str, Any] = {"base": {"optimizer": "ars2-base"}, "sync": {"optimizer": "ars2-sync"}}


def table(**more: Any) -> dict[str, Any]:
    return {"name": "t", "steps": 10, "seeds": 2, "arms": ARMS, **more}


def test_runs_are_named_after_arm_and_seed_and_share_settings() -> None:
    grid = grid_of(table(visits=7, arms={**ARMS, "slow": {"optimizer": "adamw", "lr": 1e-4, "visits": 3}}))
    configs = grid.configs()
    assert [config.run_name for config in configs] == [f"{arm}-s{seed}" for seed in (0, 1) for arm in grid.arms]
    assert {config.arm for config in configs} == {"base", "sync", "slow"}
    assert all(config.out == str(Path("runs/t")) and config.threads == 1 and config.steps == 10 for config in configs)
    assert [config.evaluations for config in configs[:3]] == [7, 7, 3]
    assert configs[5].seeds == {"init": 1, "split": 1, "order": 1}
    assert set(configs[0].measures or ()) <= set(MEASURES)


def test_two_names_of_one_setting_are_refused() -> None:
    with pytest.raises(ConfigError, match="the grid has both visits and evaluations, which are one setting"):
        grid_of(table(visits=7, evaluations=3))
    with pytest.raises(ConfigError, match="arm a has both visits and evaluations"):
        grid_of(table(arms={"a": {"optimizer": "adamw", "evaluations": 3, "visits": 3}}))


def test_options_of_an_arm_are_merged_with_those_of_the_grid() -> None:
    grid = grid_of(table(options={"rho": 0.2}, arms={"a": {"optimizer": "ars2-lazy", "options": {"shear": "off"}}}))
    assert grid.configs()[0].options == {"rho": 0.2, "shear": "off"}


def test_several_workloads_stand_in_the_names_of_runs() -> None:
    grid = grid_of(table(workloads=["digits-mlp", "digits-conv"], seeds=[4]))
    assert {config.run_name for config in grid.configs()} == {
        f"{task}-{arm}-s4" for task in ("digits-mlp", "digits-conv") for arm in ARMS
    }


def test_without_contrasts_each_other_arm_is_compared_with_the_first() -> None:
    assert grid_of(table()).contrasts == {"sync": ("sync", "base")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepz": 3}, "unknown key 'stepz' in the grid; did you mean steps?"),
        ({"seed": 3}, "the grid cannot set seed: seeds = "),
        ({"steps": "many"}, "the grid: steps must be an integer, got 'many'"),
        ({"steps": 0}, "the grid: steps must lie between 1 and"),
        ({"arms": {}}, "the grid needs a table"),
        ({"arms": {"a": 3}}, "arm a must be a table"),
        ({"arms": {"a": {"optimiser": "sgd"}}}, "unknown key 'optimiser' in arm a; did you mean optimizer?"),
        ({"arms": {"a": {"seed_split": 3}}}, "arm a cannot set seed_split: all arms share the seeds"),
        ({"arms": {"a": {"workload": "digits-mlp"}}}, "arm a cannot set workload: all arms are trained on the same"),
        ({"arms": {"a": {"optimizer": "ars2-timer", "replay": "b"}}}, "arm a replays the unknown arm 'b'; known: a"),
        ({"arms": {"a": {"replay": "b"}, "b": {"replay": "a"}}}, "arm a replays arm b, which replays another"),
        ({"replay": "base"}, "the grid cannot set replay: an arm replays another one"),
        ({"contrasts": {"x": ["sync", "bass"]}}, "contrast 'x' names the unknown arm 'bass'; did you mean base?"),
        ({"contrasts": {"x": ["sync"]}}, "contrast 'x' must be two arms"),
        ({"contrasts": {"x": ["base", "base"]}}, "contrast 'x' compares arm base with itself"),
        ({"seeds": [0, 1, 1]}, "seeds has 1 twice"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seeds": []}, "seeds must be a number of seeds or a list of them"),
        ({"seeds": [True]}, "seeds must be a number of seeds or a list of them"),
        ({"seeds": [-1]}, "seeds must lie between 0 and"),
        ({"seeds": 500_000}, r"the grid has 1,000,000 runs \(2 arms, 500,000 seeds"),
        ({"workload": "mine.py:task"}, "a grid names no code.*--workload FILE.py:NAME"),
        ({"workload": "digits-mlp", "workloads": ["digits-conv"]}, "workload and workloads: keep one"),
        ({"workloads": ["digits-mlp", "digits-mlp"]}, "workloads has 'digits-mlp' twice"),
        ({"level": 0}, "level must be a training loss above 0"),
        ({"level": "low"}, "level must be a training loss above 0"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid_of(table(**change))


@pytest.mark.parametrize("name", ["", "a/b", ".hidden"])
def test_a_name_of_a_grid_or_arm_is_one_plain_folder(name: str) -> None:
    with pytest.raises(RunError, match="the run name"):
        grid_of(table(name=name))
    if "/" in name:
        with pytest.raises(RunError, match="the run name"):
            grid_of(table(arms={name: {"optimizer": "sgd"}}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": {"a": {"optimizer": "ars2-bass"}}}, "arm a: unknown optimizer 'ars2-bass'; did you mean ars2-base"),
        ({"arms": {"a": {"optimizer": "ars2-lazy", "options": {"sheer": 1}}}}, "arm a: .*'sheer'; did you mean shear"),
        ({"arms": {"a": {"optimizer": "ars2-lazy", "options": {"shear": "of"}}}}, "arm a: .*shear"),
        ({"arms": {"a": {"optimizer": "adamw", "options": {"rho": 1}}}}, "arm a: .*adamw has no setting 'rho'"),
        ({"workload": "digits-mpl"}, "unknown workload 'digits-mpl'; did you mean digits-mlp"),
        ({"measures": ["adaptive_trase"]}, "arm base: measures must be names .* did you mean 'adaptive_trace'"),
        ({"preset": "economic"}, "arm base: unknown preset 'economic'; did you mean economy"),
        ({"batch_size": 10_000}, "arm base: batch_size must be at most"),
    ],
)
def test_optimizers_workloads_and_measures_are_checked_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved_configs(grid_of(table(**change)))


def test_a_file_gives_its_name_to_the_grid(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('seeds = 3\n[arms]\na = { optimizer = "adamw", options.eps = 1e-6 }\n')
    grid = read_grid(tmp_path / "mine.toml", {"seeds": 2})
    assert (grid.name, grid.seeds, grid.contrasts) == ("mine", (0, 1), {})
    assert grid.configs()[0].options == {"eps": 1e-6}


def test_the_shipped_grid_of_parts_is_sound_and_tries_each_part_at_two_rates() -> None:
    grid = read_grid("parts")
    assert "parts" in shipped_grids()
    resolved_configs(Grid(**{**vars(grid), "seeds": grid.seeds[:1]}))
    once = [name for name in grid.contrasts if not name.endswith(", 2 lr")]
    assert [f"{name}, 2 lr" for name in once] == [name for name in grid.contrasts if name not in once]
    compared = {arm for pair in grid.contrasts.values() for arm in pair}
    assert {*compared, "adamw-plain"} == set(grid.arms)  # claims on the time of a step are about AdamW itself
    for name in once:
        assert grid.contrasts[f"{name}, 2 lr"] == tuple(f"{arm}-2lr" for arm in grid.contrasts[name])


def test_an_unknown_grid_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"part is no file and no shipped grid; did you mean parts\?"):
        read_grid("part")
    with pytest.raises(ConfigError, match=r"config mine.toml cannot be read"):
        read_grid("mine.toml")
