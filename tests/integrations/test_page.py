"""The page on trainers of other packages runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossscope import Run

for name in ("transformers", "accelerate", "lightning"):
    pytest.importorskip(name)

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "record_in_other_trainers.md"


@pytest.mark.filterwarnings("default")
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 4
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    for name, passes in {"gpt": 1, "gpt-sync": 2, "lightning": 2, "accelerate": 1}.items():
        run = Run.open(tmp_path / "runs" / name)
        assert (run.status, len(run.steps)) == ("finished", 12)
        assert set(run.steps["passes"].fillna(1)) == {passes}
        assert "lambda_max" in set(run.probes["measure"])
