"""The README's Python runs as it stands, and the files that pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.run import Run
from lossscope.probes import SpectrumEstimate

ROOT = Path(__file__).parents[1]


def test_the_readme_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"<!-- tested by tests/test_readme.py -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    mine = Run.open("runs/mine")
    assert len(mine.steps) == 20
    assert len(mine.probes) == 0
    spectrum = scope["spectrum"]
    assert isinstance(spectrum, SpectrumEstimate)
    assert spectrum.top is not None
    largest = spectrum.top.estimate()
    assert largest.low <= largest.value <= largest.high
    assert spectrum.products > 0


def test_the_picture_is_small_and_the_table_is_that_of_the_overview() -> None:
    text = (ROOT / "README.md").read_text()
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", text)
    content = (ROOT / picture).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000
    table = re.search(r"<!-- written by docs/update_readme.py -->\n```text\n(.*?)```", text, re.S)
    assert table is not None
    for words in ("Each arm at the end of training", "ars2-base", "ars2-sync", "adamw@rms", "λ_max", "adaptive trace"):
        assert words in table[1]
    assert max(map(len, table[1].splitlines())) <= 120


def test_recording_takes_two_more_lines_than_not_recording() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S)
    assert block is not None
    lines = [line for line in block.group(1).splitlines() if "recorder" in line and "import" not in line]
    assert [line.strip().split("(")[0] for line in lines] == ["recorder = Recorder", "recorder.step", "recorder.close"]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/RESULTS.md",
        "docs/index.md",
        "docs/glossary.md",
        "docs/recording.md",
    ],
)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]*\.?\w*)`", (ROOT / page).read_text())
    for name in {name for name in named if not name.startswith("runs/")}:
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_the_page_on_recording_names_the_cadence_of_every_preset() -> None:
    page = (ROOT / "docs/recording.md").read_text()
    rows = {
        row.split("|")[1].strip().split(",")[0].split(":")[0]: row.split("|")[3:6]
        for row in page.splitlines()
        if "|" in row
    }
    for column, name in enumerate(("economy", "standard", "full")):
        preset = PRESETS[name]
        stated = {start: found[column].strip() for start, found in rows.items() if len(found) == 3}
        assert period(stated["norms"]) == preset.tensors_every
        assert period(stated["singular spectra"]) == preset.spectra_every
        assert period(stated["Taylor remainder of each layer"]) == preset.layers_every
        assert period(stated["pairs of minibatches"].split(",")[0]) == preset.windows_every
        lags = re.search(r"lags 0, ([\d, ]+)", stated["pairs of minibatches"])
        assert (tuple(map(int, lags[1].split(", "))) if lags else ()) == preset.lags
        assert stated["curvature evaluations"].split(",")[0] == str(preset.evaluations)
        assert period(stated["update without the injected shear"]) == preset.counterfactual_every


def period(words: str) -> int | None:
    """Return the number of steps in `every 10 steps`; None for never."""
    if words == "never":
        return None
    return 1 if words.endswith("every step") else int(re.search(r"every (\d+)", words)[1])  # type: ignore[index]


def test_the_pasted_report_is_in_the_words_of_today() -> None:
    text = (ROOT / "README.md").read_text()
    assert "directional edge ratio" in text
    assert not {"R_dir", "recorder's share"} & set(re.findall(r"R_dir|recorder's share", text))
