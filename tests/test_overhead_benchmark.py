"""The overhead benchmark at a tiny size: an arm that is missing is said to be, one that is there has its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import benchmark


@pytest.fixture(scope="module")
def overhead() -> Iterator[object]:
    yield from benchmark("overhead")


@pytest.mark.slow
def test_every_arm_has_a_row(overhead, monkeypatch):
    def missing(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setattr(overhead, "others", lambda: {"wandb.watch, offline": missing})
    ((name, network),) = overhead.networks(["digits"])
    rows = [line.split(" | ") for line in overhead.lines(network, 6)]
    labels = [row[0] for row in rows]
    assert (name, labels) == ("digits", ["| economy", "| standard", "| full", "| wandb.watch, offline"])
    for row in rows[:3]:
        assert float(row[1]) > 0
        assert float(row[2]) > 0
        assert 0 < float(row[3].partition(" ")[0]) < 100
        assert float(row[4].rstrip(" |")) > 0
    assert "No module named 'wandb'" in rows[3][1]


def test_networks_have_the_sizes_of_their_names(overhead):
    found = dict(overhead.networks(["convnet", "gpt", "resnet18"]))
    assert [found[name].words.split(" ")[0] for name in found] == ["0.422M", "11.1M", "11.2M"]
    with pytest.raises(SystemExit, match="unknown network mlp"):
        list(overhead.networks(["mlp"]))
