"""Atomic output of text files."""

from __future__ import annotations

import os

import pytest

from lossscope.landscape.errors import LandscapeError
from lossscope.reports import write_text


def test_a_text_is_written_as_utf8_and_nothing_else_stays(tmp_path):
    write_text(tmp_path / "report.txt", "λ\n")
    assert (tmp_path / "report.txt").read_bytes() == "λ\n".encode()
    assert os.listdir(tmp_path) == ["report.txt"]


def test_a_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("old")
    with pytest.raises(LandscapeError, match=r"report\.txt exists; add --force"):
        write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new", force=True)
    assert path.read_text() == "new"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(LandscapeError, match="--output must be a file, got the folder"):
        write_text(tmp_path, "text", force=True)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(LandscapeError, match="nowhere is not a folder; create it first"):
        write_text(tmp_path / "nowhere" / "report.txt", "text")
