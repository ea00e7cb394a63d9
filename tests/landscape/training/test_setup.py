"""Setup of a training run from its config."""

from __future__ import annotations

import torch

from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.setup import job_of
from lossscope.landscape.training.training import resolved
from lossscope.probes import CrossEntropy, Objective


def job(**settings):
    return job_of(resolved(TrainConfig.of({"workload": "digits-mlp", "optimizer": "adamw", **settings})))


def test_the_minibatches_of_a_pair_are_independent_draws_of_the_size_of_training():
    made = job()
    pairs = made.minibatch_pairs()
    rows = {row.numpy().tobytes(): place for place, row in enumerate(made.split.train[0])}
    drawn = [[rows[row.numpy().tobytes()] for row in inputs] for inputs, _ in pairs.data.batches]
    assert [len(one) for one in drawn] == [128] * 64
    # of 128 independent draws out of 1437, 128^2 / 1437 = 11.4 are expected in both of a pair; disjoint ones have none
    common = [len(set(one) & set(two)) for one, two in zip(drawn[::2], drawn[1::2], strict=True)]
    assert 9 < sum(common) / len(common) < 13
    assert drawn[0] != drawn[2]


def test_the_mean_product_of_a_pair_is_the_squared_gradient_of_the_training_loss():
    made = job(batch_size=8)
    training = Objective(made.model, CrossEntropy(), [made.split.train])
    pairs = made.minibatch_pairs()
    g = training.gradient()
    products = [
        float(pairs.batch(place).gradient() @ pairs.batch(place + 1).gradient())
        for place in range(0, len(pairs.data.batches), 2)
    ]
    mean, spread = sum(products) / len(products), torch.tensor(products).std() / len(products) ** 0.5
    assert abs(mean - float(g @ g)) < 3 * float(spread)


def test_the_pairs_depend_on_the_order_seed_alone():
    assert job(steps=10).minibatch_pairs().data_hash == job(steps=400).minibatch_pairs().data_hash
    assert job(seed_order=1).minibatch_pairs().data_hash != job().minibatch_pairs().data_hash
