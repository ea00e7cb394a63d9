"""A run's parts, made anew from its config."""

from __future__ import annotations

from lossscope.landscape.config import TrainConfig
from lossscope.landscape.job import job_of
from lossscope.landscape.training import resolved


def job(**settings):
    return job_of(resolved(TrainConfig.of({"workload": "digits-mlp", "optimizer": "adamw", **settings})))


def samples(batch):
    return {row.numpy().tobytes() for row in batch[0]}


def test_the_minibatches_of_a_pair_have_no_sample_in_common_and_the_size_of_training():
    pairs = job().minibatch_pairs()
    batches = pairs.data.batches
    assert len(batches) == 64
    distinct = {row.numpy().tobytes() for row in job().split.train[0]}
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(first[1]) == len(second[1]) == 128
        assert not samples(first) & samples(second)
        assert samples(first) <= distinct
    assert samples(batches[0]) != samples(batches[2])


def test_the_pairs_depend_on_the_order_seed_alone():
    assert job(steps=10).minibatch_pairs().data_hash == job(steps=400).minibatch_pairs().data_hash
    assert job(seed_order=1).minibatch_pairs().data_hash != job().minibatch_pairs().data_hash


def test_a_training_set_without_two_minibatches_has_no_pair():
    assert job(batch_size=1000).minibatch_pairs() is None
