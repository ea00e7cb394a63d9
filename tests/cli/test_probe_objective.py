"""`lossscope probe --objective`: user loops and losses, valid ones and those that cannot be measured."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from lossscope.cli.main import main
from lossscope.landscape.recording.recorder import Recorder
from lossscope.probes.objective.objective import Objective

MINE = """
import sys
import torch
import torch.nn.functional as F
from lossscope.probes import CrossEntropy, Objective

def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 3, generator=generator), torch.arange(40) % 2

def minibatches():
    x, y = batch()
    return Objective(network(), CrossEntropy(), list(zip(x.split(10), y.split(10))))

def of(loss):
    return Objective(network(), loss, [batch()])

def objective():
    return Objective(network(), CrossEntropy(), [batch()])

def layout():
    return of(lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]))

def shape():
    return of(lambda model, batch: model(batch[0].T).mean())

def labels():
    return of(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1] + 5))

def ending():
    return of(lambda model, batch: sys.exit(5))

def other_lengths():
    x, y = batch()
    def at(rows):
        return {"x": x[rows], "y": y[rows], "apart": torch.zeros(len(x[rows]), len(x[rows]))}
    loss = lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]) + batch["apart"].sum()
    return Objective(network(), loss, [at(slice(0, 15)), at(slice(15, 40))])

def warned():
    import warnings
    warnings.warn("said by the user's file", DeprecationWarning)
    return objective()

def nan():
    return of(lambda model, batch: model(batch[0]).sum() * float("nan"))

def nonscalar():
    return of(lambda model, batch: model(batch[0]))

def notensor():
    return of(lambda model, batch: 3.0)

def detached():
    return of(lambda model, batch: model(batch[0]).detach().square().mean())

def constant():
    return of(lambda model, batch: torch.tensor(1.0))

def noisy():
    return of(lambda model, batch: (model(batch[0]) + torch.rand(2)).square().mean())

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.square().mean()

    @staticmethod
    def backward(ctx, slope):
        raise RuntimeError("no way back")

def oneway():
    return of(lambda model, batch: Once.apply(model(batch[0])))

def dropout():
    inside = list(network())  # a dropout has no parameters: the weights of the run fit
    model = torch.nn.Sequential(inside[0], torch.nn.Sequential(inside[1], torch.nn.Dropout(0.5)), inside[2])
    return Objective(model, CrossEntropy(), [batch()], mode="train")

def integers():
    model = network()
    for name, p in list(model.named_parameters()):
        layer, kind = name.split(".")
        setattr(model[int(layer)], kind, torch.nn.Parameter(p.detach().long(), requires_grad=False))
    return Objective(model, CrossEntropy(), [batch()])

def leaving():
    sys.exit(5)

class Unprintable(BaseException):
    def __str__(self):
        raise RuntimeError("no words")

def unprintable():
    raise Unprintable

def generator_exit():
    raise GeneratorExit

def stopping():
    raise StopIteration("\\x1b]0;title\\x07 said")

class Loud(BaseException):
    pass

def loud():
    def loss(model, batch):
        raise Loud("in the loss")
    return of(loss)

def second_call():
    calls = []
    def loss(model, batch):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("not again")
        return F.cross_entropy(model(batch[0]), batch[1])
    return of(loss)

def closing():
    import os
    sys.stdout.close()
    sys.stderr.close()
    sys.stdout = None
    os.close(1)
    os.close(2)
    return objective()

def replacing():
    sys.stdout = sys.stderr = 5
    return objective()
"""


class Said(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Probe = Callable[..., Said]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of user loops under `runs`, one for each unnamed optimizer, with the user's file beside them."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    scope: dict[str, Callable[[], object]] = {}
    exec(MINE, scope)
    made = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD, "RMSprop": torch.optim.RMSprop}
    for name, optimizer_class in made.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            goal = scope["objective"]()
        assert isinstance(goal, Objective)
        x, y = goal.data.batches[0]
        optimizer = optimizer_class(goal.model.parameters(), lr=1e-2)
        settings = {"steps": 2, "evaluations": 0, "arm": f"my {name}"}
        with Recorder(
            folder / "runs" / name, goal.model, optimizer, goal, "economy", **settings, overhead=1
        ) as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                loss = F.cross_entropy(goal.model(x), y)
                loss.backward()
                optimizer.step()
                recorder.step(loss)
    return folder


@pytest.fixture
def probe(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Probe:
    """The command on a copy of a run, with an objective of `mine.py`."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def command(run: str, objective: str, *arguments: str) -> Said:
        words = ["probe", f"runs/{run}", "--objective", f"mine.py:{objective}", *arguments]
        monkeypatch.setattr(sys, "argv", ["lossscope", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return Said(end.value.code, *capsys.readouterr())

    return command


def contents(run: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs", run).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("layout", "loss of mine.py:layout raised TypeError: tuple indices must be integers"),
        ("shape", "loss of mine.py:shape raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("labels", "loss of mine.py:labels raised IndexError: Target"),
        ("ending", "loss of mine.py:ending raised SystemExit: 5"),
        ("oneway", "the gradient of the loss of mine.py:oneway raised RuntimeError: no way back"),
        ("nan", "the loss is nan on batch 0 of 1"),
        ("nonscalar", "loss_fn must return one real number, got torch.float32 of shape (40, 2)"),
        ("notensor", "loss_fn must return one real number, got float"),
        ("detached", "loss of mine.py:detached: the loss depends on none of the 4 trainable parameters"),
        ("constant", "loss of mine.py:constant: the loss depends on none of the 4 trainable parameters"),
        ("noisy", "draws random numbers"),
        ("dropout", "1.1 (Dropout) is active; use mode='eval'"),
        ("integers", "parameters must be real and floating, got 0.weight of torch.int64"),
        ("leaving", "leaving() of mine.py raised SystemExit: 5"),
        ("unprintable", "unprintable() of mine.py raised Unprintable: its message cannot be printed"),
        ("generator_exit", "generator_exit() of mine.py raised GeneratorExit"),
        ("stopping", "stopping() of mine.py raised StopIteration: \N{REPLACEMENT CHARACTER}]0;title"),
        ("loud", "loss of mine.py:loud raised Loud: in the loss"),
        ("second_call", "loss of mine.py:second_call raised RuntimeError: not again"),
        ("objectve", "mine.py has no 'objectve'; did you mean objective?"),
        ("zzz", "mine.py has no 'zzz'; it defines network, batch, minibatches, of, objective"),
    ],
)
def test_a_loss_that_cannot_be_measured_is_one_line_and_nothing_is_written(probe, objective, words):
    before = contents("AdamW")
    code, out, err = probe("AdamW", objective)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert contents("AdamW") == before


@pytest.mark.parametrize("objective", ["closing", "replacing"])
def test_a_file_that_closes_or_replaces_the_streams_is_measured_all_the_same(probe, objective):
    said = probe("AdamW", objective, "--measures", "loss")
    assert (said.code, said.err) == (0, "")
    assert "Added 1 row; read it with" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--seed", 25 * "1"),
            "--seed 1111111111111111111111111 is out of range: need at least 0 and at most 2147483647",
        ),
        (("--max-products", 25 * "1"), "--max-products 1111111111111111111111111 is out of range"),
        (("--checkpoint", 40 * "1"), "is no step: give steps of at most 18 digits, or all"),
        (("--checkpoint", 5000 * "1"), "is no step: give steps of at most 18 digits, or all"),
        (("--rel", "nan"), "--rel nan is out of range"),
    ],
)
def test_a_number_out_of_bounds_is_one_short_line(probe, arguments, words):
    said = probe("AdamW", "objective", *arguments)
    assert said.code == 1
    assert words in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 300


def test_a_budget_that_is_too_small_is_told_at_once_and_nothing_is_written(probe):
    before = contents("AdamW")
    said = probe("AdamW", "objective", "--measures", "lambda_max,trace", "--max-products", "3")
    assert said.code == 1
    assert said.err == "error: --max-products 3 is too few for lambda_max, trace: need at least 6\n"
    assert contents("AdamW") == before
    assert probe("AdamW", "objective", "--measures", "lambda_max,trace", "--max-products", "6").code == 0


@pytest.mark.parametrize(
    ("run", "there", "absent"),
    [
        ("AdamW", {"preconditioned_sharpness", "preconditioned_edge_ratio"}, ()),
        ("SGD", {"sharpness_edge_ratio"}, ()),
        (
            "RMSprop",
            set(),
            ("sharpness_edge_ratio", "preconditioned_edge_ratio", "preconditioned_sharpness"),
        ),
    ],
)
def test_the_metric_of_an_optimizer_of_torch_is_measured_and_of_another_it_is_said_why_not(probe, run, there, absent):
    found = json.loads(probe(run, "objective", "--rel", "20%", "--json").out)
    metric = {"sharpness_edge_ratio", "preconditioned_sharpness", "preconditioned_edge_ratio"}
    assert {row["measure"] for row in found["rows"]} & metric == there
    assert [tuple(one["measures"]) for one in found["absent"]] == ([absent] if absent else [])
    for one in found["absent"]:
        assert "to be rebuilt, got 'torch.optim.rmsprop.RMSprop'" in one["why"]


@pytest.mark.parametrize(
    ("run", "next_step"),
    [("RMSprop", "use lambda_max, and directional_edge_ratio"), ("SGD", "use sharpness_edge_ratio")],
)
def test_a_metric_that_is_not_there_is_an_error_with_a_next_step_where_nothing_else_was_asked(probe, run, next_step):
    before = contents(run)
    code, _, err = probe(run, "objective", "--measures", "metric")
    assert code == 1
    assert next_step in err
    assert contents(run) == before


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_without_a_place_in_the_source(probe):
    said = probe("AdamW", "other_lengths", "--measures", "loss", "--json")
    assert said.code == 0
    assert json.loads(said.out)["rows"]
    assert said.err.startswith("warning: additivity: unchecked. Batches are weighted by the lengths")
    assert said.err.count("\n") == 1
    assert ".py" not in said.err


@pytest.mark.filterwarnings("default")
def test_a_warning_of_the_users_file_keeps_its_place(probe):
    with pytest.warns(DeprecationWarning, match="said by the user's file") as given:
        assert probe("AdamW", "warned", "--measures", "loss").code == 0
    assert Path(given[0].filename).name == "mine.py"


def test_a_density_alone_is_shown_with_what_it_cost(probe):
    said = probe("AdamW", "objective", "--measures", "density")
    measured, cost = said.out.split("\nCost\n")
    assert " none" not in said.out
    assert "nodes" in measured
    assert "spectrum" in cost
    assert "Added 1 density table; read it with" in cost
    assert json.loads(probe("AdamW", "objective", "--measures", "density", "--json").out)["products"] > 0


def test_batch_sharpness_was_given_no_bound_and_needs_more_batches_not_more_products(probe):
    out = probe("AdamW", "minibatches", "--measures", "batch_sharpness").out
    measured, rest = out.split("\nCost\n")
    ((_, _, _, *cells),) = [line.split() for line in measured.splitlines() if " batch_sharpness " in line]
    assert cells[-2:] == ["–", "lossscope"]
    assert "--max-products" not in rest
    assert "Only more batches narrow the interval of batch_sharpness, batch_sharpness_ratio_of_means" in rest
    assert json.loads(probe("AdamW", "minibatches", "--measures", "batch_sharpness", "--json").out)["unmet"] == []


def test_one_row_is_one_row(probe):
    assert "Added 1 row; read it with" in probe("AdamW", "objective", "--measures", "loss").out


def test_every_call_that_spends_products_says_what_took_them_and_the_loss_what_it_cost(probe):
    measures = "loss,lambda_max,adaptive_trace,radial,sampling_error,per_module,metric"
    said = probe("AdamW", "objective", "--measures", measures, "--rel", "20%", "--json")
    rows = json.loads(said.out)["rows"]
    assert all(row["method"] for row in rows if row["products"])
    assert all(row["seconds"] > 0 for row in rows)


def test_advice_is_given_only_where_it_helps(probe):
    # a density's by-products follow the depth of the space, which --rel does not move
    said = probe(
        "AdamW", "objective", "--measures", "trace,effective_rank", "--rel", "0.01%", "--max-products", "7"
    ).out
    assert "Bounds not met: trace; raise --max-products or --rel." in said
    assert "The Krylov space is too small for effective_rank" in said
