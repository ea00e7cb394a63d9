"""Objectives whose batches lie on two processes: the numbers of one process, the same on both, and ends with words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs import TIMEOUT, data, few, measured, net, on_ranks

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.distributed import over_ranks
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.ranks import fingerprint

REFUSED = {
    "values": r"the values of the parameters differ between .*: 0\.weight, checksum .* and checksum .*; make the same",
    "names": r"the names of the trainable parameters differ .*: 0\.bias, trainable and missing; make the same",
    "shapes": r"the shapes or dtypes of the parameters differ .*: 0\.weight, \(\(8, 6\), .* and \(\(9, 6\), .*;",
    "modes": r"the modes differ between rank 0 and rank 1 of 2: the mode, eval and frozen;",
    "train": r"mode='train' updates buffers .*: use mode='frozen' or 'eval'",
    "twice": r"the objective is one over ranks already",
    "vectors": r"the vectors multiplied differ between rank 0 and rank 1 of 2: call the same measures",
    "drift": r"the values of the parameters differ between rank 0 and rank 1 of 2: measure where the ranks are in step",
    "batches": r"this measure needs single batches, of which each of 2 ranks has only its own",
}


@pytest.fixture(name="ranks", scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    jobs = ["numbers", "wrapped", "buffers", *(f"refused_{name}" for name in REFUSED), "refused_failure"]
    return on_ranks(tmp_path_factory.mktemp("ranks"), *jobs, "refused_death")


def test_numbers_over_two_ranks_are_those_of_one_process_with_all_batches(ranks: list[dict[str, Any]]) -> None:
    assert_equal(ranks[0]["numbers"], few(Objective(net(), CrossEntropy(), data())))


@pytest.mark.slow
def test_every_measure_over_two_ranks_is_that_of_one_process_and_the_same_on_both(tmp_path: Path) -> None:
    found = [rank["everything"] for rank in on_ranks(tmp_path, "everything")]
    assert_equal(found[0], measured(Objective(net(), CrossEntropy(), data())))
    for name, first in found[0].items():
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(found[1][name])), name


def assert_equal(numbers: Any, whole: dict[str, Any]) -> None:
    """Compare the numbers of a rank with those of one process."""
    assert isinstance(numbers, dict), numbers
    for name, expected in whole.items():
        found = numbers[name]
        expected, found = torch.as_tensor(expected).abs().double(), torch.as_tensor(found).abs().double()
        size = float(expected.abs().max())
        # bounds are as small as the rounding of products, eigenvectors lose digits by their gap
        loose = {"bounds": 1e-3, "vectors": 1e-5, "differences": 1e-6, "trace": 1e-9, "tracked": 1e-9}
        torch.testing.assert_close(found, expected, rtol=0, atol=loose.get(name, 1e-11) * size, msg=name)


def test_all_ranks_have_the_same_numbers_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    for job in ("numbers", "wrapped", "buffers"):
        for name, first in ranks[0][job].items():
            if name != "buffers":
                assert torch.equal(torch.as_tensor(first), torch.as_tensor(ranks[1][job][name])), (job, name)


def test_a_wrapped_model_is_measured_and_trains_on(
    ranks: list[dict[str, Any]],
) -> None:
    whole = Objective(net(), CrossEntropy(), data())
    assert ranks[0]["wrapped"]["value"] == pytest.approx(whole.value(), rel=1e-13)
    torch.testing.assert_close(ranks[0]["wrapped"]["hessian"], hessian(whole) @ torch.ones(whole.size).double())


def test_running_statistics_that_differ_are_those_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    model = net(norm=True)
    for buffer, value in zip(model.buffers(), ranks[0]["buffers"]["buffers"], strict=True):
        buffer.copy_(value)
    whole = Objective(model, CrossEntropy(), data())
    assert ranks[0]["buffers"]["value"] == pytest.approx(whole.value(), rel=1e-13)
    torch.testing.assert_close(ranks[0]["buffers"]["hessian"], hessian(whole) @ torch.ones(whole.size).double())


@pytest.mark.parametrize("name", REFUSED)
def test_both_ranks_say_the_same_sentence(ranks: list[dict[str, Any]], name: str) -> None:
    said = [rank[f"refused_{name}"] for rank in ranks if rank]
    assert re.fullmatch(f"ProbeError: {REFUSED[name]}.*", said[0]), said[0]
    assert len(said[0]) < 420


def test_an_error_on_one_rank_ends_the_other_with_its_words(ranks: list[dict[str, Any]]) -> None:
    expected = "ProbeError: rank 1 of 2 failed, so that this one cannot go on: KeyError: 'labels'"
    assert ranks[0]["refused_failure"] == expected


def test_a_rank_that_dies_ends_the_other_with_a_sentence(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["refused_death"].startswith("ProbeError: rank 0 of 2 cannot reach the others: one has ended, or")


@pytest.mark.slow
def test_a_rank_that_is_silent_ends_the_other_after_the_timeout(tmp_path: Path) -> None:
    found = on_ranks(tmp_path, "refused_silence", timeout=TIMEOUT)
    assert found[0]["refused_silence"].startswith("ProbeError: rank 0 of 2 cannot reach the others")


def test_a_script_without_a_process_group_is_told_of_torchrun() -> None:
    with pytest.raises(ProbeError, match="there is no process group: start the script with torchrun"):
        over_ranks(Objective(net(), CrossEntropy(), data()))


def test_a_fingerprint_depends_on_every_bit_and_on_the_order() -> None:
    x = torch.linspace(-1, 1, 1000)
    seen = {fingerprint(x), fingerprint(x.flip(0)), fingerprint(x[:-1]), fingerprint(x.double()), fingerprint(x[:0])}
    for place in (0, 500, 999):
        other = x.clone()
        other[place] = torch.nextafter(x[place], torch.tensor(2.0))
        seen.add(fingerprint(other))
    assert len(seen) == 8
    assert fingerprint(x) == fingerprint(x.clone())
    assert fingerprint(torch.zeros(3)) != fingerprint(-torch.zeros(3))
