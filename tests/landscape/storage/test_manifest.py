from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from lossscope.landscape.errors import RunError, SchemaError
from lossscope.landscape.storage.manifest import manifest_text, read_manifest, run_path, write_manifest
from lossscope.landscape.storage.schema import SCHEMA_VERSION


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", ".hidden", "nul\0", "two\nlines", "\ud800"])
def test_a_name_that_could_leave_or_hide_its_folder_is_refused(name):
    with pytest.raises(RunError, match=r"^the run name [^\n]*$"):
        run_path("runs", name)


def test_the_longest_name_has_a_hundred_characters():
    assert run_path("runs", "n" * 100) == Path("runs") / ("n" * 100)
    with pytest.raises(RunError, match="101 characters, at most 100"):
        run_path("runs", "n" * 101)


@pytest.mark.parametrize("name", ["ars2-base-s0", "adamw@rms", "two words", "Größe", "a..b"])
def test_an_ordinary_name_is_one_folder_below_the_root(tmp_path, name):
    assert run_path(tmp_path, name).parent == tmp_path


def test_nan_becomes_null_and_numpy_becomes_plain_while_infinite_settings_are_kept(tmp_path):
    manifest = {
        "schema_version": 1,
        "loss": float("nan"),
        "top": [np.float32(0.5), float("inf"), np.float64("-inf")],
        "n": np.int64(3),
        "path": Path("a/b"),
        "on": np.bool_(True),
        "nested": {"nan": np.float64("nan")},
    }
    write_manifest(tmp_path, manifest)
    expected = {"schema_version": 1, "loss": None, "top": [0.5, math.inf, -math.inf], "n": 3, "path": "a/b", "on": True}
    assert read_manifest(tmp_path) == expected | {"nested": {"nan": None}}
    text = (tmp_path / "run.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


def test_the_keys_keep_their_order(tmp_path):
    write_manifest(tmp_path, {"schema_version": 1, "z": 1, "a": 2})
    assert list(read_manifest(tmp_path)) == ["schema_version", "z", "a"]


def test_a_value_without_a_json_form_is_named():
    with pytest.raises(ValueError, match=r"manifest\.config\.lr\[1\] has type object"):
        manifest_text({"config": {"lr": [1, object()]}})


def test_a_newer_schema_names_both_versions_and_the_command_to_upgrade(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(
        SchemaError, match=rf"version {SCHEMA_VERSION + 1}, .* {SCHEMA_VERSION}: pip install -U lossscope"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 90 + b"]" * 90,
        b"{}",
        b"[]",
        b"null",
        b'{"schema_version": "1"}',
        b"\0" * 20,
    ],
)
def test_a_corrupted_manifest_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"^[^\n]*run\.json [^\n]*$"):
        read_manifest(tmp_path)


def test_a_missing_folder_a_folder_without_a_run_and_a_file_have_different_messages(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="does not exist"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(RunError, match=r"holds no run \(no run\.json\)"):
        read_manifest(tmp_path)
    with pytest.raises(RunError, match="is a file, not the folder of a run"):
        read_manifest(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_manifest_and_nothing_else(tmp_path, monkeypatch):
    write_manifest(tmp_path, {"schema_version": 1, "n": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        write_manifest(tmp_path, {"schema_version": 1, "n": 2})
    assert read_manifest(tmp_path)["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
