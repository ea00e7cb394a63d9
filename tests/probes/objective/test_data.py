from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.data import FixedData, fixed_data


def test_an_iterator_is_read_once_and_kept() -> None:
    data = fixed_data((torch.ones(n, 2), torch.zeros(n)) for n in (3, 1))
    assert data.counts == (3.0, 1.0)
    assert data.weights == (0.75, 0.25)
    assert data.samples == 4
    assert data.devices == {torch.device("cpu")}


def test_nested_batches_are_counted_by_their_first_tensor_and_by_count() -> None:
    batch = {"note": "x", "inner": [{"tokens": torch.zeros(3, 7)}, torch.zeros(9)]}
    assert fixed_data([batch]).samples == 3
    assert fixed_data([batch], count=lambda b: b["inner"][0]["tokens"].numel()).samples == 21
    assert fixed_data([(np.zeros((4, 2)),)]).samples == 4


def test_no_batch_and_no_length_are_refused() -> None:
    exhausted = iter([torch.ones(2)])
    list(exhausted)
    with pytest.raises(ProbeError, match="batches must have at least 1 batch, got 0"):
        fixed_data(exhausted)
    with pytest.raises(ProbeError, match="has no tensor with a length"):
        fixed_data([("text", 3)])
    with pytest.raises(ProbeError, match="got 0 for batch 1"):
        fixed_data([torch.ones(2), torch.ones(0)])
    with pytest.raises(ProbeError, match="got nan for batch 0"):
        fixed_data([torch.ones(2)], count=lambda _: float("nan"))


def test_the_hash_follows_values_dtype_shape_place_and_order() -> None:
    base = [{"x": torch.arange(6.0), "y": torch.tensor(1)}]
    same = fixed_data([{"x": torch.arange(12.0)[::2] / 2, "y": torch.tensor(1)}]).hash
    assert fixed_data(base).hash == same
    assert len(same) == 64
    others = [
        [{"x": torch.arange(6.0) + 1e-6, "y": torch.tensor(1)}],
        [{"x": torch.arange(6.0, dtype=torch.float64), "y": torch.tensor(1)}],
        [{"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor(1)}],
        [{"z": torch.arange(6.0), "y": torch.tensor(1)}],
        [{"y": torch.tensor(1), "x": torch.arange(6.0)}],
        [{"x": torch.arange(6.0), "y": torch.tensor(1), "kind": "a"}],
        [{"x": torch.arange(6.0), "y": torch.tensor(1)}] * 2,
    ]
    hashes = {fixed_data(other).hash for other in others}
    assert same not in hashes
    assert len(hashes) == len(others)
    assert fixed_data([torch.ones(2, dtype=torch.bfloat16)]).hash != fixed_data([np.ones(2)]).hash


Pair = namedtuple("Pair", ["x", "note"])


def numbered(lengths: list[int]) -> list[dict[str, Any]]:
    """Return batches with consecutively numbered samples."""
    places = torch.split(torch.arange(sum(lengths)), lengths)
    return [
        {
            "x": place,
            "pair": Pair(np.arange(len(place)) + int(place[0]), "n"),
            "C": torch.ones(99),
            "extra": (place * 2,),
        }
        for place in places
    ]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_parts_are_disjoint_cover_everything_and_are_nearly_equal(lengths: list[int], parts: int, seed: int) -> None:
    whole = fixed_data(numbered(lengths))
    if parts > whole.samples:
        with pytest.raises(ProbeError, match=f"at least 2 and at most that of samples, {whole.samples}, got {parts}"):
            whole.split(parts, seed=seed)
        return
    found = whole.split(parts, seed=seed)
    samples = [torch.cat([batch["x"] for batch in part.batches]) for part in found]
    assert sorted(torch.cat(samples).tolist()) == list(range(whole.samples))
    assert max(map(len, samples)) - min(map(len, samples)) <= 1
    for part in found:
        assert part.samples == sum(len(batch["x"]) for batch in part.batches)
        for batch in part.batches:
            assert torch.equal(batch["extra"][0], 2 * batch["x"])
            assert batch["pair"].x.tolist() == batch["x"].tolist()
            assert (type(batch["pair"]), batch["pair"].note, len(batch["C"])) == (Pair, "n", 99)


def test_parts_follow_the_seed_and_the_count_is_taken_of_each() -> None:
    def tokens(batch: Any) -> float:
        return float((batch["x"] >= 0).sum()) * 3

    whole = fixed_data(numbered([20, 5]), tokens)
    first, same, other = (whole.split(2, seed=seed) for seed in (0, 0, 1))
    assert first[0].hash == same[0].hash != other[0].hash
    assert sum(part.samples for part in first) == whole.samples == 75
    assert isinstance(fixed_data([UserDict(x=torch.ones(4))]).split(2, seed=0)[0].batches[0], UserDict)


def test_what_cannot_be_cut_is_refused() -> None:
    whole = fixed_data([{"text": "words"}], lambda _: 5)
    with pytest.raises(ProbeError, match=r"a batch \(dict\) has no tensor with a length"):
        whole.split(2, seed=0)
    with pytest.raises(ProbeError, match="at least 2 and at most that of samples, 3, got 1"):
        fixed_data([torch.ones(3)]).split(1, seed=0)


def test_floating_tensors_are_cast_and_the_rest_stays() -> None:
    batch = {"x": torch.ones(3), "y": torch.arange(3), "note": "n", "inner": [torch.ones(3, dtype=torch.bfloat16)]}
    found: FixedData = fixed_data([batch]).cast(torch.float64)
    (cast,) = found.batches
    assert (cast["x"].dtype, cast["y"].dtype, cast["inner"][0].dtype) == (torch.float64, torch.int64, torch.float64)
    assert cast["note"] == "n"
    assert found.counts == (3.0,)
    assert batch["x"].dtype == torch.float32


def test_the_shapes_of_all_tensors_are_known() -> None:
    data = fixed_data([{"x": torch.ones(3, 2), "n": 5}, {"x": torch.ones(1, 2), "n": 5}])
    assert data.shapes == (((".x", (3, 2)),), ((".x", (1, 2)),))
