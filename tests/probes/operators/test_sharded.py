"""Models under FSDP2 on two processes: numbers of the whole model within their bounds, and ends with words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs import TIMEOUT, data, net, on_ranks

from helpers import dense
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sums import dot, gram, norm, norms, of_parts, row_dots, row_norms

REFUSED = {
    "reverse": r"method='reverse' differentiates the gradient, which FSDP2 reduces .* it has no derivative; use",
    "plain": r"the model is not under fully_shard \(FSDP2\) itself: apply fully_shard\(model\)",
    "scale": r"the gradient of the sharded model is 2\.?0?\d* times the slope of the mean loss: undo set_gradient_div",
    "hook": r"parameter 0\.weight has a hook that runs after its gradient, .*: measure before registering it",
    "columns": r"the numbers of vectors multiplied differ between rank 0 and rank 1 of 2: call the same measures",
}


@pytest.fixture(name="ranks", scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    jobs = ["sharded_double", "sharded_single", *(f"refused_{name}" for name in REFUSED), "refused_sharded_death"]
    return on_ranks(tmp_path_factory.mktemp("sharded"), *jobs)


@pytest.fixture(name="exact", scope="module")
def whole_objective() -> Objective:
    return Objective(net(), CrossEntropy(), data())


@pytest.mark.slow
@pytest.mark.parametrize("job", ["sharded_double", "sharded_single"])
def test_numbers_of_a_sharded_model_are_those_of_the_whole_one(
    ranks: list[dict[str, Any]], exact: Objective, job: str
) -> None:
    assert isinstance(ranks[0][job], dict), ranks[0][job]
    found, digits = ranks[0][job], 1e-12 if job == "sharded_double" else 1e-6
    assert (found["size"], found["method"]) == (exact.size, "differences")
    assert found["value"] == pytest.approx(exact.value(), rel=digits)
    gradient = exact.gradient()
    assert float((found["gradient"].double() - gradient).norm()) < 10 * digits * float(gradient.norm())
    product = hessian(exact) @ found["direction"].double()
    assert float((found["product"].double() - product).norm()) < found["unit"] * float(product.norm())
    assert found["unit"] < (1e-7 if job == "sharded_double" else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["sharded_double", "sharded_single"])
def test_bounds_and_intervals_of_a_sharded_model_hold_the_true_numbers(
    ranks: list[dict[str, Any]], exact: Objective, job: str
) -> None:
    found, H = ranks[0][job], dense(hessian(exact))
    values, vectors = torch.linalg.eigh(H)
    assert bool(((found["top"] - values.flip(0)[:2]).abs() <= found["bounds"]).all())
    assert float(found["bounds"].max()) <= 0.01 * float(values[-1])
    assert abs(float(found["bottom"][0] - values[0])) <= float(found["bottom"][1])
    assert found["trace"][0] <= float(H.trace()) <= found["trace"][1]
    assert found["frobenius"][0] <= float(H.norm()) <= found["frobenius"][1]
    assert all(abs(t - float(values[-1])) <= b for t, b in zip(found["tracked"], found["bounded"], strict=True))
    assert abs(float(found["vector"].double() @ vectors[:, -1])) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_all_ranks_have_the_same_numbers_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    for job in ("sharded_double", "sharded_single"):
        for name, first in ranks[0][job].items():
            other = ranks[1][job][name]
            same = torch.equal(torch.as_tensor(first), torch.as_tensor(other)) if name != "method" else first == other
            assert same, (job, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_both_ranks_say_the_same_sentence(ranks: list[dict[str, Any]], name: str) -> None:
    said = [rank[f"refused_{name}"] for rank in ranks]
    assert said[0] == said[1]
    assert re.match(f"ProbeError: {REFUSED[name]}", said[0]), said[0]


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other_with_a_sentence(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["refused_sharded_death"].startswith("ProbeError: rank 0 of 2 cannot reach the others")


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_the_scripts_of_the_documentation_run_on_two_processes(tmp_path: Path, which: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "measure_on_several_processes.md").read_text()
    script = tmp_path / "measure.py"
    script.write_text(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[which])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-r", "3"]
    subprocess.run([*command, "--log-dir", str(tmp_path / "logs"), str(script)], check=True, timeout=300, cwd=tmp_path)
    lines = [path.read_text().split() for path in (tmp_path / "logs").rglob("stdout.log")]
    assert {line[0] for line in lines} == {"0", "1"}
    assert lines[0][1:] == lines[1][1:]


@pytest.mark.slow
def test_a_rank_that_fails_within_a_forward_pass_ends_the_other_with_its_words(tmp_path: Path) -> None:
    found = on_ranks(tmp_path, "refused_sharded_failure", timeout=TIMEOUT)
    assert "KeyError: 'labels'" in found[0]["refused_sharded_failure"]
    assert found[1]["refused_sharded_failure"] == "KeyError: 'labels'"


def test_sums_over_parts_are_reduced_once() -> None:
    a = torch.arange(1.0, 7.0).reshape(2, 3)
    plain = dot(a, a), norm(a), *norms([a]), row_dots(a, a), row_norms(a), gram(a, a)
    long = torch.ones(1, 2**17)
    with of_parts(lambda total: total * 4):
        found = dot(a, a), norm(a), *norms([a]), row_dots(a, a), row_norms(a), gram(a, a)
        assert float(dot(long, long)) == float(gram(long, long)) == float(row_dots(long, long)) == 4 * 2**17
        assert not gram(a[:0], a).numel()
    for one, other, factor in zip(plain, found, (4, 2, 2, 4, 2, 4), strict=True):
        torch.testing.assert_close(other, factor * one)
    assert float(dot(a, a)) == float(plain[0])


def test_an_algorithm_draws_from_its_operator() -> None:
    """A sharded operator draws its own part; the number of draws is that of an ordinary one."""
    H = from_matrix(torch.diag(torch.linspace(1, 2, 40)))
    drawn: list[str] = []
    normal, signs = H.normal, H.signs
    H.normal = lambda g: (drawn.append("normal"), normal(g))[1]  # type: ignore[method-assign]
    H.signs = lambda g: (drawn.append("signs"), signs(g))[1]  # type: ignore[method-assign]
    measure_spectrum(H, top=1, quantities=["top", "trace"], max_products=20)
    assert {*drawn} == {"normal", "signs"}


def test_a_plain_script_is_told_to_shard_the_model() -> None:
    from lossscope.probes.operators.sharded import ShardedObjective

    with pytest.raises(ProbeError, match=r"not under fully_shard \(FSDP2\) itself.* or use Objective"):
        ShardedObjective(net(), CrossEntropy(), data())
