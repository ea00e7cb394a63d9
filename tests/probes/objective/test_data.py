from __future__ import annotations

import random
from collections import UserDict, defaultdict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.data import FixedData, fixed_data
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


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


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    note: str = "n"


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Graph:
    """Like those of graph libraries: tensors in a store, shapes in its representation, a link back."""

    def __init__(self, x: torch.Tensor) -> None:
        self.store = {"x": x, "of": [self]}

    def __repr__(self) -> str:
        return "Graph(x=[2000])"


class Tokens(UserDict):  # type: ignore[type-arg]
    """Like the batches of tokenizers."""


WRAPPERS = {
    "dataclass": Record,
    "slots": Slotted,
    "graph": Graph,
    "tokens": lambda x: Tokens(x=x),
    "nested": lambda x: {"a": [(Record(x),)]},
    "defaultdict": lambda x: defaultdict(list, x=x),
    "read-only mapping": lambda x: MappingProxyType({"x": x}),
    "numpy": lambda x: Record(x.numpy()),
    "array of objects": lambda x: np.array([x, None], dtype=object),
    "sparse": lambda x: {"x": x.to_sparse()},
    "complex": lambda x: Record(torch.complex(x, x).conj()),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_hash_covers_every_byte_that_can_be_reached(name: str) -> None:
    wrap, x = WRAPPERS[name], torch.arange(2000.0)
    other = x.clone()
    other[1000] += 1  # in the middle, which a representation leaves out
    first, same, changed = (fixed_data([wrap(one)], lambda _: 1).hash for one in (x, x.clone(), other))
    assert first == same != changed


def test_the_hash_has_no_addresses_and_no_order_of_sets() -> None:
    def made() -> Any:
        return {"x": torch.ones(2), "path": Path("a") / "b", "set": {"p", "q", "r"}, "f": made, "o": object()}

    assert fixed_data([made()]).hash == fixed_data([made()]).hash


@pytest.mark.parametrize("name", ["dataclass", "slots", "graph", "tokens", "nested", "defaultdict"])
def test_a_generator_that_fills_one_buffer_again_gives_all_its_batches(name: str) -> None:
    buffer, wrap = torch.empty(3), WRAPPERS[name]
    one = wrap(buffer)

    def batches() -> Iterator[Any]:
        for value in range(4):
            buffer.fill_(value)
            yield one

    copies = fixed_data(batches(), lambda _: 1)
    expected = [wrap(torch.full((3,), float(value))) for value in range(4)]
    assert copies.hash == fixed_data(expected, lambda _: 1).hash
    assert type(copies.batches[0]) is type(one)
    kept = [wrap(torch.ones(3))]
    assert fixed_data(kept, lambda _: 1).batches[0] is kept[0]


def used() -> tuple[Objective, torch.Tensor, np.ndarray[Any, Any]]:
    """Return an objective that was evaluated, and the two tensors of its data, the second by its numpy array."""
    x, y = torch.randn(6, 4), np.array([0, 1, 2, 0, 1, 2])
    objective = Objective(torch.nn.Linear(4, 3), CrossEntropy(), [(x, torch.from_numpy(y))])
    objective.value()
    return objective, x, y


def test_data_that_change_after_an_evaluation_are_refused() -> None:
    for hashed in (False, True):
        objective, x, _ = used()
        if hashed:
            assert objective.data_hash
        x.add_(1)
        with pytest.raises(
            ProbeError, match="batch 0 of the data changed since the objective was made: give the objec"
        ):
            objective.gradient()
    objective, x, _ = used()
    assert objective.data_hash
    wide = torch.randn(5000, 4)
    large = Objective(torch.nn.Linear(4, 3), CrossEntropy(), [(wide, torch.zeros(5000, dtype=torch.long))])
    assert large.data_hash
    large.value()
    wide[1, 1] += 1  # not among those that are compared
    with pytest.raises(ProbeError, match="the data changed since the objective was made"):
        large.value()
    objective, _, y = used()
    y[0] = 2  # which torch does not count
    with pytest.raises(ProbeError, match="changed since the objective was made"):
        objective.value()


def test_data_that_are_written_with_what_they_are_and_losses_that_write_into_their_batch_pass() -> None:
    objective, x, _ = used()
    value = objective.value()
    x.copy_(x.clone())
    assert objective.value() == value

    def clipping(model: Any, batch: Any) -> torch.Tensor:
        return CrossEntropy()(model, (batch[0].clamp_(-1, 1), batch[1]))

    own = Objective(objective.model, clipping, [(x.clone() * 3, torch.zeros(6, dtype=torch.long))])
    assert own.value() == own.value()
    assert float(own.gradient().norm()) > 0


def test_a_shuffled_loader_draws_from_no_generator_of_the_training() -> None:
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    mine, model = torch.Generator().manual_seed(3), torch.nn.Linear(4, 3)
    for generator in (None, mine):
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True, generator=generator
        )
        before = torch.get_rng_state(), mine.get_state(), random.getstate(), np.random.get_state()[1].copy()
        objective = Objective(model, CrossEntropy(), loader)
        assert objective.samples == 12
        after = torch.get_rng_state(), mine.get_state(), random.getstate(), np.random.get_state()[1]
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
        assert before[2] == after[2]
        assert (before[3] == after[3]).all()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (torch.ones(2, 3), r"count must return the number of terms, got Tensor of shape \(2, 3\) for batch 0"),
        (np.ones(4), r"count must return the number of terms, got ndarray of shape \(4,\) for batch 0"),
        (torch.tensor(0), "terms of a batch must be finite and positive, got 0 for batch 0: drop the batch"),
        pytest.param(10**400, "terms of a batch must be finite and positive, got inf for batch 0", id="400 digits"),
        (1e308, r"terms of a batch must be from 1e-100 to 1e\+100, got 1e\+308 for batch 0: divide all counts by"),
        (5e-324, r"terms of a batch must be from 1e-100 to 1e\+100, got 4.94066e-324 for batch 0: divide all counts"),
        ("many\nlines", r"got 'many\\nlines' for batch 0"),
    ],
)
def test_a_count_that_is_no_positive_number_is_refused_in_one_line(terms: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message) as error:
        fixed_data([torch.ones(2)], lambda _: terms)
    assert "\n" not in str(error.value)


def test_a_count_that_raises_is_named() -> None:
    with pytest.raises(ProbeError, match=r"count\(batch\) raised KeyError: 'labels' for batch 0"):
        fixed_data([{"x": torch.ones(2)}], lambda batch: batch["labels"])
