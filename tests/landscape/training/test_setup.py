"""Setup of a training run from its config."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lossscope.landscape import train
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.setup import job_of
from lossscope.landscape.training.training import resolved
from lossscope.landscape.training.workloads import WORKLOADS
from lossscope.probes import CrossEntropy, Objective, hessian, measure_spectrum


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


def test_curvature_is_that_of_the_whole_training_loss():
    made = job()
    inputs, labels = made.split.train
    assert made.config.curvature_samples == len(labels) == 1437
    loss = F.cross_entropy(made.model(inputs), labels).detach()
    assert made.objective.value() == pytest.approx(float(loss), rel=1e-6)
    assert made.objective.data_hash == Objective(made.model, CrossEntropy(), [made.split.train]).data_hash
    fewer = job(curvature_samples=100)
    assert [len(labels) for _, labels in fewer.objective.data.batches] == [100]


def test_the_edge_of_full_batch_gradient_descent_is_that_of_the_loss_it_descends(tmp_path):
    settings = {"optimizer": "sgd", "batch_size": 1437, "lr": 0.1, "steps": 3, "evaluations": 2, "preset": "economy"}
    config = TrainConfig.of({"workload": "digits-mlp", "out": str(tmp_path), "threads": 1, **settings})
    run = train(config)
    assert run.manifest["config"]["curvature_samples"] == 1437
    rows = run.probes[run.probes["measure"] == "lambda_max"]
    start = job_of(resolved(config))

    def top(count):
        data = [tuple(part[:count] for part in start.split.train)]
        spectrum = measure_spectrum(hessian(Objective(start.model, CrossEntropy(), data)), top=1, quantities=("top",))
        return float(spectrum.top.values[0])

    assert rows["step"].min() == 0
    first = rows[rows["step"] == 0]["value"].iloc[0]
    assert first == pytest.approx(top(1437), rel=2e-3)  # the preset asks for 1 %
    assert first != pytest.approx(top(512), rel=2e-2)


@pytest.mark.parametrize("key", ["batch_size", "curvature_samples"])
def test_more_examples_than_there_are_is_refused(key, tmp_path):
    config = TrainConfig.of({"workload": "digits-mlp", "out": str(tmp_path), key: 5000})
    words = rf"^{key} must be at most 1437, the number of training examples of digits-mlp, got 5000$"
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert not list(tmp_path.iterdir())


def test_runs_recorded_before_the_setting_used_512_samples():
    assert TrainConfig.recorded({"workload": "digits-mlp"}).curvature_samples == 512
    assert TrainConfig.recorded({"workload": "digits-mlp", "curvature_samples": 1437}).curvature_samples == 1437


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_declared_size_is_the_number_of_examples(name):
    task = WORKLOADS[name]
    assert task.size == len(task.examples()[1])
    assert task.train_size == len(task.split(0).train[1])
