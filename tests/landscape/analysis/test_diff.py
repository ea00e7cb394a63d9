"""Differences of weights without torch: closed forms, random matrices, a probe, and what does not fit."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from lossscope.landscape.analysis.diff import WeightDifference, weight_difference
from lossscope.landscape.analysis.subspaces import Subspaces, matrix_difference, random_angles, random_overlap
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.reprobe.weights_file import saved_arrays
from lossscope.landscape.storage.weight_arrays import SavedWeights, safetensors_weights
from lossscope.probes import singular_spectrum


def saved(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> SavedWeights:
    file = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return safetensors_weights(file, name)


def difference(folder: Path, a: Mapping[str, Tensor], b: Mapping[str, Tensor], top: int = 8) -> WeightDifference:
    return weight_difference(saved(folder, "A", a), saved(folder, "B", b), top=top)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int = 0) -> NDArray[np.float64]:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def test_distances_are_those_of_the_definition_and_shares_add_up(tmp_path: Path) -> None:
    a = {"0.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "0.bias": torch.zeros(2), "1.weight": torch.ones(1, 4)}
    b = {"0.weight": torch.tensor([[3.0, 0.0], [0.0, 1.0]]), "0.bias": torch.ones(2), "1.weight": -torch.ones(1, 4)}
    found = difference(tmp_path, a, b)
    first, second = found.modules
    assert (first.name, first.size, first.norm_a, first.distance) == ("0", 6, 5.0, pytest.approx(math.sqrt(11)))
    assert (second.relative, second.mutual) == (2.0, pytest.approx(math.sqrt(2)))
    assert found.whole.distance == pytest.approx(math.sqrt(27))
    assert found.whole.relative == pytest.approx(math.sqrt(27 / 29))
    assert first.share + second.share == pytest.approx(1.0)
    bias = next(one for one in found.tensors if one.name == "0.bias")
    assert math.isnan(bias.relative)  # zero in A


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (6, 3, 3, 3)])
def test_singular_values_agree_with_the_probe(tmp_path: Path, shape: tuple[int, ...]) -> None:
    a, b = normal(*shape), 1e-12 * normal(*shape, seed=1)
    matrix = difference(tmp_path, {"w": a}, {"w": b}).tensors[0].matrix
    assert matrix is not None
    for ours, tensor in ((matrix.a, a), (matrix.b, b)):
        theirs = singular_spectrum(tensor.flatten(1))
        assert ours.values == pytest.approx(theirs.values, rel=1e-10)
        assert ours.norm == pytest.approx(theirs.values[0], rel=1e-12)
        assert ours.stable_rank == pytest.approx(theirs.stable_rank, rel=1e-12)
        assert ours.entropy == pytest.approx(theirs.entropy(), rel=1e-12)


def test_a_rotation_of_the_leading_plane_has_its_angle() -> None:
    left, right, turn = orthogonal(10), orthogonal(14, 1), np.eye(10)
    angles = (0.3, 1.1)
    for place, angle in enumerate(angles):  # turns direction i toward direction i + 5
        turn[[place, place + 5], [place, place + 5]] = math.cos(angle)
        turn[place + 5, place], turn[place, place + 5] = math.sin(angle), -math.sin(angle)
    values = np.diag([5.0, 4.0, *np.linspace(1, 0.1, 8)]) @ np.eye(10, 14)
    for transposed in (False, True):
        a, b = left @ values @ right, left @ turn @ values @ right
        found = matrix_difference(*((a.T, b.T) if transposed else (a, b)), top=2)
        turned, kept = (found.right, found.left) if transposed else (found.left, found.right)
        assert turned is not None
        assert kept is not None
        assert turned.angles == pytest.approx(angles, abs=1e-7)
        assert kept.angles == pytest.approx([0, 0], abs=1e-7)
        assert turned.overlap == pytest.approx(np.mean(np.cos(angles) ** 2))
        assert found.gap == pytest.approx(0.75)


def test_rotated_inputs_change_no_left_subspace_and_no_singular_value() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((20, 30)), rng.standard_normal((20, 30))
    turn = orthogonal(30, 3)
    plain, turned = matrix_difference(a, b, 4), matrix_difference(a @ turn, b @ orthogonal(30, 4), 4)
    assert plain.left is not None
    assert turned.left is not None
    assert turned.left.angles == pytest.approx(plain.left.angles, abs=1e-7)
    assert turned.b.values == pytest.approx(plain.b.values)


@pytest.mark.parametrize(("dimension", "k"), [(6, 3), (40, 5), (64, 8)])
def test_random_subspaces_have_the_overlap_and_the_angles_that_are_said(dimension: int, k: int) -> None:
    """An independent simulation: random matrices, orthonormalized, and scipy's angles."""
    from scipy.linalg import subspace_angles

    rng = np.random.default_rng(0)
    draws = np.array(
        [
            subspace_angles(rng.standard_normal((dimension, k)), rng.standard_normal((dimension, k)))[::-1]
            for _ in range(600)
        ]
    )
    overlaps = (np.cos(draws) ** 2).mean(1)
    mean, deviation = random_overlap(dimension, k)
    assert overlaps.mean() == pytest.approx(mean, abs=4 * deviation / math.sqrt(600))
    assert overlaps.std() == pytest.approx(deviation, rel=0.12)
    for place in (0, -1):
        assert np.median(draws[:, place]) == pytest.approx(np.median(random_angles(dimension, k)[:, place]), abs=0.03)
    beyond = sum(Subspaces(one, dimension).beyond_chance for one in draws)
    assert beyond <= 18  # 1 % of 600, and four standard deviations


def test_equal_subspaces_are_beyond_chance_in_two_dimensions_too() -> None:
    assert Subspaces(np.zeros(1), 2).beyond_chance
    assert not Subspaces(np.array([0.5]), 2).beyond_chance


def test_a_subspace_that_is_not_determined_is_missing_with_its_reason(tmp_path: Path) -> None:
    cases = {"zero": torch.zeros(4, 4), "equal": torch.eye(4), "row": torch.ones(1, 4)}
    found = difference(tmp_path, cases, {name: normal(*tensor.shape) for name, tensor in cases.items()})
    reasons = {one.name: one.matrix.missing for one in found.tensors if one.matrix is not None}
    assert reasons == {
        "zero": "the matrix is zero",
        "equal": "singular values 2 and 3 are equal within rounding",
        "row": "fewer than two rows or columns",
    }
    assert all(one.matrix is not None and one.matrix.left is None for one in found.tensors)


def test_bfloat16_is_read_as_it_is_stored_and_statistics_count_in_no_sum(tmp_path: Path) -> None:
    a = {"n.weight": normal(4, 4).bfloat16(), "n.running_mean": torch.zeros(4), "n.steps": torch.tensor([3])}
    b = {"n.weight": normal(4, 4, seed=1).bfloat16(), "n.running_mean": torch.ones(4), "n.steps": torch.tensor([9])}
    found = difference(tmp_path, a, b)
    assert found.whole.distance == pytest.approx(float((a["n.weight"].double() - b["n.weight"].double()).norm()))
    assert [one.statistics for one in found.tensors if one.name == "n.running_mean"] == [True]
    assert found.matched.others == ("n.steps",)


def test_a_prefix_is_ignored_and_named_beside_tensors_without_partner(tmp_path: Path) -> None:
    a = {"0.weight": normal(3, 3), "0.bias": normal(3), "head": normal(2)}
    b = {"module.0.weight": normal(3, 3), "module.0.bias": normal(4), "module.extra": normal(1)}
    pairs = difference(tmp_path, a, b).matched
    assert pairs.common == (("0.weight", "module.0.weight"),)
    assert pairs.reshaped == (("0.bias", (3,), (4,)),)
    assert (pairs.only_a, pairs.only_b) == (("head",), ("module.extra",))
    assert "'module.'" in pairs.prefix
    assert not pairs.complete


@pytest.mark.parametrize("dropped", ["head.weight", "embed.weight"])
def test_tied_weights_are_counted_once_by_the_name_of_either(tmp_path: Path, dropped: str) -> None:
    tied = normal(5, 3)
    torch.save({"embed.weight": tied, "head.weight": tied}, tmp_path / "a.pt")
    kept = ({"embed.weight", "head.weight"} - {dropped}).pop()
    torch_file, safe = saved_arrays(tmp_path / "a.pt", "A"), saved(tmp_path, "b", {kept: 2 * tied})
    for one, other in ((torch_file, safe), (safe, torch_file)):
        found = weight_difference(one, other)
        assert found.matched.complete
        assert found.whole.size == 15


def test_each_of_two_tensors_that_are_tied_on_one_side_is_compared(tmp_path: Path) -> None:
    weight = normal(5, 3)
    torch.save({"embed.weight": weight, "head.weight": weight}, tmp_path / "a.pt")
    tied, apart = (
        saved_arrays(tmp_path / "a.pt", "A"),
        saved(tmp_path, "b", {"embed.weight": weight, "head.weight": 3 * weight}),
    )
    for one, other in ((tied, apart), (apart, tied)):
        found = weight_difference(one, other)
        assert found.matched.complete
        assert found.whole.size == 30
        assert found.whole.distance == pytest.approx(float(2 * weight.double().norm()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_are_not_read_are_told_from_integers(dtype: torch.dtype, tmp_path: Path) -> None:
    a, b = ({"n": normal(3), "w": scale * normal(4, 4), "i": torch.arange(2)} for scale in (1, 2))
    pairs = difference(tmp_path, a, {**b, "w": b["w"].to(dtype)}).matched
    assert (pairs.unread, pairs.others) == (("w",), ("i",))
    assert not pairs.complete


def test_a_mask_of_infinities_in_both_is_left_out_and_a_diverged_weight_named(tmp_path: Path) -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    found = difference(tmp_path, {"mask": mask, "w": normal(2, 2)}, {"mask": mask, "w": normal(2, 2, seed=1)})
    assert [one.name for one in found.tensors] == ["w"]
    bad = normal(2, 2)
    bad[0, 1] = math.nan
    with pytest.raises(ConfigError, match="B is not finite in 1 of the 4 numbers of w, so it has diverged"):
        difference(tmp_path, {"w": normal(2, 2)}, {"w": bad})


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({"encoder.layers.0.w": 2}, {"encoder.layer.0.w": 2}, "nearest are encoder.layers.0.w and encoder.layer.0.w"),
        ({"w": 2}, {"w": 3}, r"w has the shape \(2, 2\) in the first and \(3, 3\) in the second"),
        ({"qq": 2}, {"zz": 2}, "the first are qq and zz"),
    ],
)
def test_other_architectures_are_refused_with_the_nearest_name(
    tmp_path: Path, a: dict[str, int], b: dict[str, int], words: str
) -> None:
    first, second = ({name: normal(size, size) for name, size in one.items()} for one in (a, b))
    with pytest.raises(ConfigError, match=words):
        difference(tmp_path, first, second)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"garbage of sixteen bytes")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        safetensors_weights(file, "x")


def test_a_difference_of_files_imports_no_torch(tmp_path: Path) -> None:
    saved(tmp_path, "a", {"w": normal(4, 4)})
    saved(tmp_path, "b", {"w": normal(4, 4, seed=1)})
    code = (
        "import sys; from lossscope.landscape import diff\n"
        "from lossscope.reports import render\n"
        "from lossscope.reports.difference.report import difference_report\n"
        "found = diff(sys.argv[1], sys.argv[2]); assert found.weights.whole.distance > 0\n"
        "render(difference_report(found, '', ''), 'text')\n"
        "assert 'torch' not in sys.modules\n"
    )
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    subprocess.run([sys.executable, "-c", code, *files], check=True, timeout=60)
