"""The settings of a training run: accepted values, and the messages for others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import TrainConfig, assignment, from_toml


def test_seeds_follow_the_one_seed_unless_they_are_given() -> None:
    assert TrainConfig.of({"seed": 7, "seed_order": 9}).seeds == {"init": 7, "split": 7, "order": 9}


def test_the_default_name_is_workload_optimizer_and_seed() -> None:
    assert TrainConfig.of({"optimizer": "ars2-sync", "seed": 2}).run_name == "digits-mlp-ars2-sync-s2"
    assert TrainConfig.of({"name": "mine"}).run_name == "mine"
    named = TrainConfig.of({"optimizer": "ars2-lazy", "arm": "placebo", "seed": 2})
    assert (named.run_name, named.arm_name) == ("digits-mlp-placebo-s2", "placebo")


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'step'; did you mean steps\b"):
        TrainConfig.of({"step": 3})
    with pytest.raises(ConfigError, match="unknown key 'zzz'; known keys: workload, optimizer"):
        TrainConfig.of({"zzz": 3})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", "many", "steps must be an integer, got 'many' of type str"),
        ("steps", 2.5, "steps must be an integer, got 2.5 of type float"),
        ("steps", True, "steps must be an integer, got True of type bool"),
        ("workload", 3, "workload must be text, got 3 of type int"),
        ("lr", "big", "lr must be a number, got 'big' of type str"),
        ("options", 1, "options must be a table of settings, got 1 of type int"),
        ("seed", None, "seed must be an integer, got None of type NoneType"),
        ("measures", ["trace", 3], r"measures must be a list of texts, got \['trace', 3\] of type list"),
        ("evaluate_at", [1, True], r"evaluate_at must be a list of integers, got \[1, True\] of type list"),
    ],
)
def test_the_message_for_a_wrong_type_names_the_right_one(key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig.of({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("evaluations", -1),
     ("checkpoints", -1), ("seed", -1), ("seed_order", 2**31), ("lr", -0.1), ("lr", float("inf")),
     ("lr", float("nan")), ("until_accuracy", 5.0), ("threads", 100_000)],
)  # fmt: skip
def test_a_number_outside_its_bounds_is_refused_with_both(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{key} must lie between .* and .*, got "):
        TrainConfig.of({key: value})


def test_an_integer_is_accepted_as_a_float() -> None:
    assert TrainConfig.of({"lr": 1}).lr == 1.0


def test_assignments_read_numbers_lists_and_plain_text() -> None:
    assert assignment("steps=500") == {"steps": 500}
    assert assignment("options.rho=0.1") == {"options": {"rho": 0.1}}
    assert assignment("options.betas=[0.9, 0.98]") == {"options": {"betas": [0.9, 0.98]}}
    assert assignment("workload=modadd-59") == {"workload": "modadd-59"}
    with pytest.raises(ConfigError, match=r"--set must be key=value, .* got 'steps'"):
        assignment("steps")


def test_a_toml_file_has_the_same_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('workload = "digits-conv"\nsteps = 10\n[options]\nrho = 0.05\n')
    config = TrainConfig.of(from_toml(path))
    assert (config.workload, config.steps, config.options) == ("digits-conv", 10, {"rho": 0.05})
    path.write_text("steps = = 3")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        from_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        from_toml(tmp_path / "absent.toml")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"^config: .*endless\.toml is a device, not a regular file"):
        from_toml(tmp_path / "endless.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="has 1,048,577 bytes, at most 1,048,576 are read"):
        from_toml(tmp_path / "long.toml")


LIMITS = {
    "steps=" + 3000 * "[": "is nested too deeply, at most 20 levels",
    "steps=" + 5000 * "9": "has 5006 characters, at most 4096 allowed",
    "options.k=" + 2000 * "9": "options must be an integer of at most 64 bits, got an integer of 6644 bits",
    "lr=1e308": "lr must lie between 0.0 and 1e+30, got 1e+308",
    "lr=" + 4000 * "9": "lr must lie between 0.0 and 1e+30, got an integer of 13288 bits",
    "batch_size=2147483648": "batch_size must lie between 1 and 2147483647, got 2147483648",
    "evaluations=2147483647": "evaluations must lie between 0 and 100000, got 2147483647",
    'out="a\\u0000b"': "out must be a text of at most 4096 characters without NUL",
    "seed=1234567890123456789012345": "seed must lie between 0 and 2147483647, got 1234567890123456789012345",
    "options.x=" + 30 * "[" + 30 * "]": "options must have at most 20 levels of lists and tables",
    5000 * "a": "--set must be key=value",
    5000 * "a" + "=1": "has 5002 characters, at most 4096 allowed",
    50 * "a" + "=1": "unknown key 'aaaa",
}


@pytest.mark.parametrize(("text", "words"), LIMITS.items(), ids=range(len(LIMITS)))
def test_a_setting_out_of_bounds_is_one_short_line_with_the_bound(text, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        TrainConfig.of(assignment(text))
    assert len(str(caught.value)) < 400


def test_a_file_of_settings_is_bounded(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("x = " + "[" * 3000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        from_toml(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        from_toml(tmp_path)
