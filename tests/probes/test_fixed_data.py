from __future__ import annotations

import numpy as np
import pytest
import torch

from lossscope.probes.errors import ProbeError
from lossscope.probes.fixed_data import fixed_data


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


def test_no_batch_and_no_length_are_told() -> None:
    exhausted = iter([torch.ones(2)])
    list(exhausted)
    with pytest.raises(ProbeError, match="got 0 batches, need at least 1"):
        fixed_data(exhausted)
    with pytest.raises(ProbeError, match="holds no tensor with a length"):
        fixed_data([("text", 3)])
    with pytest.raises(ProbeError, match="batch 1 counts 0 terms"):
        fixed_data([torch.ones(2), torch.ones(0)])
    with pytest.raises(ProbeError, match="batch 0 counts nan terms"):
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
