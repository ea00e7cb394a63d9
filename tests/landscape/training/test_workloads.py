"""Workloads: networks, data, and the order of batches."""

from __future__ import annotations

import pytest
import torch

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.modular_addition import ModularTransformer, modular_addition
from lossscope.landscape.training.prose import ALPHABET, NextCharacter, next_characters, prose
from lossscope.landscape.training.workloads import WORKLOADS, batch_at, built, workload


def test_the_modular_transformer_has_the_published_shapes_and_size() -> None:
    model = ModularTransformer(113)
    assert sum(p.numel() for p in model.parameters()) == 226_816
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["W_E"] == (128, 114)
    assert shapes["W_K"] == shapes["W_Q"] == shapes["W_V"] == (4, 32, 128)
    assert shapes["W_in"] == (512, 128)
    assert shapes["W_U"] == (128, 114)


def test_modular_addition_holds_every_pair_once() -> None:
    tokens, labels = modular_addition(113)
    assert len(tokens) == 12_769
    assert len({tuple(row) for row in tokens[:, :2].tolist()}) == 12_769
    assert torch.equal((tokens[:, 0] + tokens[:, 1]) % 113, labels)
    assert (tokens[:, 2] == 113).all()


def test_the_logits_are_those_of_the_whole_causal_network() -> None:
    torch.manual_seed(0)
    model = ModularTransformer(7).double()
    tokens = torch.randint(0, 8, (5, 3))
    x = model.W_E.mT[tokens] + model.W_pos
    k, q, v = (torch.einsum("hiw,bpw->bhpi", W, x) for W in (model.W_K, model.W_Q, model.W_V))
    scores = (q @ k.mT / 32**0.5).masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), -torch.inf)
    x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ model.W_O.mT
    x = x + torch.relu(x @ model.W_in.mT + model.b_in) @ model.W_out.mT + model.b_out
    torch.testing.assert_close(model(tokens), (x @ model.W_U)[:, -1], rtol=1e-12, atol=1e-12)


def test_prose_is_english_in_its_alphabet() -> None:
    text = prose()
    assert len(set(ALPHABET)) == len(ALPHABET) == 32
    assert set(text) <= set(ALPHABET)
    words = text.split(" ")
    assert "" not in words
    assert 0.03 < words.count("the") / len(words) < 0.1
    assert 4 < len(text) / len(words) < 8


def test_windows_and_their_next_characters_are_disjoint_pieces_of_the_prose_in_its_order() -> None:
    windows, labels = next_characters(500)
    pieces = torch.cat([windows, labels[:, None]], dim=1).flatten().tolist()
    assert "".join(ALPHABET[code] for code in pieces) == prose()[: 500 * 13]
    with pytest.raises(ConfigError, match=r"the prose of this Python has \d+ characters, 13000000 are needed"):
        next_characters(1_000_000)


def test_the_network_of_prose_depends_on_every_character_and_has_no_weight_before_its_first_layer() -> None:
    model = built(NextCharacter, 0).double()
    assert sum(p.numel() for p in model.parameters()) == 27_776
    codes = torch.arange(12)[None]
    changed = [model(codes + 3 * torch.eye(12, dtype=torch.long)[i]) for i in range(12)]
    assert all(not torch.equal(one, model(codes)) for one in changed)
    hot = torch.zeros(12, 32).double()
    hot[torch.arange(12), codes[0]] = 1
    torch.testing.assert_close(model.layers(hot.flatten()[None]), model(codes))


def test_the_split_sizes_are_the_published_ones() -> None:
    split = workload("modadd-113").split(42)
    assert (len(split.train[1]), len(split.test[1])) == (3830, 8939)
    assert len(workload("modadd-59").split(0).train[1]) == int(0.4 * 59 * 59)


@pytest.mark.parametrize("name", WORKLOADS)
def test_train_and_test_share_no_example_and_the_seed_decides(name: str) -> None:
    task = WORKLOADS[name]
    one, same, other = task.split(1), task.split(1), task.split(2)
    assert torch.equal(one.train[0], same.train[0])
    assert not torch.equal(one.train[0], other.train[0])
    assert len(one.train[1]) + len(one.test[1]) == len(task.examples()[1])


def test_the_init_seed_determines_the_weights_and_the_global_generator_is_unchanged() -> None:
    task = workload("digits-mlp")
    before = torch.get_rng_state()
    one, same, other = (built(task.network, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_an_epoch_has_every_example_once_and_the_next_another_order() -> None:
    train = (torch.arange(10), torch.arange(10))
    first = torch.cat([batch_at(train, 4, step, seed=3)[0] for step in range(3)])
    second = torch.cat([batch_at(train, 4, step, seed=3)[0] for step in range(3, 6)])
    assert sorted(first.tolist()) == list(range(10))
    assert sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)
    assert [len(batch_at(train, 4, step, seed=3)[0]) for step in range(3)] == [4, 4, 2]
    assert torch.equal(batch_at(train, 4, 5, seed=3)[0], batch_at(train, 4, 5, seed=3)[0])


def test_digits_are_real_scans_in_the_unit_interval() -> None:
    inputs, labels = WORKLOADS["digits-conv"].examples()
    assert tuple(inputs.shape) == (1797, 1, 8, 8)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_an_unknown_workload_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown workload 'digit-mlp'; did you mean digits-mlp"):
        workload("digit-mlp")
