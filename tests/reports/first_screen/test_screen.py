"""First screen: the facts of six runs in the first twelve lines, the numbers behind each sentence, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.content import Quantity, Statement
from lossscope.reports.first_screen.arms import measured

FIRST = 12  # lines
PAGES = {one.__name__: one for one in (overview, sharpness, spectral_entropy, flatness, dynamics)}
STEPS = 40
Loss = Callable[[int], float]


@dataclass(frozen=True)
class Story:
    """A run, and the facts that its first screen must tell."""

    loss: Loss
    sharpness: tuple[float, ...]  # λ_max at equally spaced evaluations
    edge: tuple[float, ...]  # its ratio to the threshold there
    status: str
    facts: tuple[str, ...]
    severities: frozenset[str]


def falling(step: int) -> float:
    return 2.3 / step


STORIES = {
    "healthy": Story(
        falling,
        (8.0, 4.0, 2.0),
        (0.3, 0.2, 0.1),
        "finished",
        (
            "finished after 40 steps",
            "λ_max is 2.00 ± 0.20",
            "at its peak 0.300 ± 0.030 at step 1",
            "flatter by a factor",
        ),
        frozenset({"fine"}),
    ),
    "diverged": Story(
        lambda step: 2.3 if step < 17 else math.nan,
        (2.0, 9.0),
        (0.5, 0.9),
        "finished",
        ("diverged: the loss stopped being finite at step 17 (before: 2.300)", "λ_max is 9.00 ± 0.90", "sharper"),
        frozenset({"fine", "look", "act"}),
    ),
    "risen": Story(
        lambda step: 2.3 + (0 if step < 21 else 70),
        (2.0, 9.0),
        (0.5, 0.9),
        "finished",
        ("diverged: the loss rose far above its start at step 21", "72.3"),
        frozenset({"fine", "look", "act"}),
    ),
    "at the edge": Story(
        falling,
        (2.0, 9.0, 2.2),
        (0.5, 1.4, 0.2),
        "finished",
        (
            "at its peak 1.40 ± 0.14 at step 20",
            "0.200 ± 0.020 at the end",
            "above 1 steps are expected to raise the loss",
            "the same",
        ),
        frozenset({"fine", "look"}),
    ),
    "crashed": Story(
        falling,
        (2.0, 2.1),
        (0.5, 0.5),
        "failed",
        ("The run did not finish: Failed after step 40: the disk was full", "40 steps were taken"),
        frozenset({"fine", "act"}),
    ),
    "unmeasured": Story(
        falling,
        (),
        (),
        "finished",
        ("finished after 40 steps", "loss on the batch went from 2.300 to 0.0575", "Missing: Curvature of run"),
        frozenset({"fine", "look"}),
    ),
}

ALL_DATA = {"config": {"batch_size": 100}, "training_samples": 100}


def written(path: Path, story: Story) -> Run:
    store = RunStore.create(path, {"arm": "one", "seeds": {"init": 0}, "loss_unit": "nats", **ALL_DATA})
    for step in range(1, STEPS + 1):
        loss = story.loss(step)
        store.append("steps", {"step": step, "loss": loss if math.isfinite(loss) else None})
    count = max(len(story.sharpness) - 1, 1)
    for place, (value, edge) in enumerate(zip(story.sharpness, story.edge, strict=True)):
        step = max(1, round(STEPS * place / count))
        bound = {"converged": True}
        store.append("probes", {"step": step, "measure": "loss", "value": 2.3 - place})
        for measure, number in (("lambda_max", value), ("sharpness_edge_ratio", edge)):
            ends = {"low": 0.9 * number, "high": 1.1 * number}
            store.append("probes", {"step": step, "measure": measure, "value": number, **ends, **bound})
    store.close(story.status, "the disk was full" if story.status == "failed" else "done")
    return Run.open(path)


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("page", ["overview", "sharpness"])
def test_the_first_twelve_lines_tell_the_facts(name: str, page: str, tmp_path: Path) -> None:
    story = STORIES[name]
    text = render(PAGES[page]([written(tmp_path / "run", story)]), "text", width=100)
    first = " ".join(" ".join(text.splitlines()[: FIRST + 2 * ("act" in story.severities)]).split())
    for fact in story.facts:
        assert fact in first, (fact, first)


@pytest.mark.parametrize("name", STORIES)
def test_the_severities_are_those_of_the_story(name: str, tmp_path: Path) -> None:
    report = sharpness([written(tmp_path / "run", STORIES[name])])
    assert {one.severity for one in report.summary} == STORIES[name].severities


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("format", ["text", "json", "markdown", "html"])
def test_every_page_and_format_has_the_screen(page: str, format: str, demo_runs: list[Run]) -> None:
    report = PAGES[page](demo_runs)
    keys = {figure.key for figure in report.figures}
    assert report.summary
    assert all(one.figure in keys | {""} for one in report.summary)
    made = render(report, format)
    opening = report.summary[0].words[:30]
    assert opening in made.replace("\\", "")
    if format == "html":
        links = [one.figure for one in report.summary if one.figure]
        assert all(f'href="#{key}"' in made and f'id="{key}"' in made for key in links)


def statements(run: Run | list[Run]) -> dict[str, Statement]:
    return {one.words.split()[0]: one for one in overview(run if isinstance(run, list) else [run]).summary}


def ascending(path: Path, gaps: list[float], *, seed: int = 0, after: float = 0.9) -> Run:
    store = RunStore.create(path, {"arm": "one", "seeds": {"init": seed}, "loss_unit": "nats"})
    for step, gap in enumerate(gaps, 1):
        passed = {"surrogate_gap": gap, "adversarial_angle": math.radians(30), "synced": True}
        store.append("steps", {"step": step, "loss": 1.0, **passed})
    for kind, entropy in (("whitened", 0.4), ("orthogonal", after)):
        row = {"tensor": "a", "slice": 0, "object": kind, "values": [1.0, 1.0], "entropy_energy": entropy}
        store.append("spectra", {"step": len(gaps), **row})
    store.close("finished", "done")
    return Run.open(path)


def test_ascent_shear_and_orthogonalization_are_told_with_their_numbers(tmp_path: Path) -> None:
    words = " ".join(one.words for one in overview([ascending(tmp_path / "a", [0.5] * 30 + [0.1, 0.3] * 5)]).summary)
    assert "raised the batch loss by 0.200 ± 0.033 nats in the last quarter of the steps, in 100 % of them" in words
    assert "turned the gradient by an angle of 30.0" in words
    assert "entropy of the update from 0.4000 to 0.9000" in words


def test_the_words_follow_the_sign_of_what_happened(tmp_path: Path) -> None:
    words = " ".join(one.words for one in overview([ascending(tmp_path / "a", [-0.5] * 40, after=0.2)]).summary)
    assert "Orthogonalization changed the spectral entropy" in words
    assert "The ascent changed the batch loss by -0.5" in words
    assert "raised" not in words


def test_an_ascent_that_does_not_raise_the_loss_is_worth_a_look(tmp_path: Path) -> None:
    found = overview([ascending(tmp_path / "a", [-0.1, -0.1, 0.3, -0.1, -0.1] * 8)]).summary
    (told,) = [one for one in found if "does not ascend" in one.words]
    assert (told.severity, "in 20 % of them;" in told.words) == ("look", True)


@pytest.mark.parametrize("gap", [[-0.1, 0.3] * 20, [0.5] * 30 + [-0.1, -0.1, 0.3, -0.1, -0.1] * 2, [-0.1] * 19])
def test_the_first_screen_and_the_diagnosis_judge_the_ascent_alike(gap: list[float], tmp_path: Path) -> None:
    report = overview([ascending(tmp_path / "a", gap)])
    (told,) = [one for one in report.summary if one.words.startswith("The ascent") and "loss" in one.words]
    (judged,) = [row[1] for table in report.tables if table.opens for row in table.rows if "ascent" in str(row[0])]
    assert told.severity == judged == "fine"


@pytest.mark.parametrize(("cosine", "severity"), [(0.3, "fine"), (0.0, "look")])
def test_the_first_screen_and_the_diagnosis_judge_the_shear_alike(cosine: float, severity: str, tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "loss_unit": "nats"})
    for step in range(1, 41):
        store.append("steps", {"step": step, "loss": 1.0, "adversarial_angle": math.radians(30 + step % 2)})
    for window in range(8):
        noisy = cosine + 0.01 * (-1) ** window
        store.append("pairs", {"step": window, "object": "shear", "lag": 0, "cosine": noisy, "mode": "eval"})
    store.close("finished", "done")
    report = overview([Run.open(tmp_path / "a")])
    told = [one for one in report.summary if "shear" in one.words]
    assert [one.severity for one in told] == [severity]
    (judged,) = [row[1] for table in report.tables if table.opens for row in table.rows if "shear" in str(row[0])]
    assert judged == severity


@pytest.mark.parametrize("page", PAGES)
def test_the_diagnosis_stands_directly_after_the_first_screen(page: str, tmp_path: Path) -> None:
    report = PAGES[page]([written(tmp_path / "run", STORIES["at the edge"])])
    (table,) = [one for one in report.tables if one.opens]
    assert table.key == "diagnosis"
    following = {"text": "Findings", "markdown": "Findings", "html": 'class="contents"'}
    for format, heading in following.items():
        made = " ".join(render(report, format, width=200).split())  # type: ignore[arg-type]
        places = [made.index(words) for words in ("Next: ", "Diagnosis", heading)]
        assert places == sorted(places), format
        assert made.index("Did the loss diverge?") < places[-1], format


def test_parts_that_an_optimizer_does_not_have_are_not_mentioned(tmp_path: Path) -> None:
    words = " ".join(one.words for one in overview([written(tmp_path / "run", STORIES["healthy"])]).summary)
    assert not any(part in words for part in ("ascent", "shear", "rthogonal"))


def test_several_runs_share_a_sentence_with_median_and_range(tmp_path: Path) -> None:
    runs = [ascending(tmp_path / str(seed), [0.1 * (seed + 1)] * 40, seed=seed) for seed in range(3)]
    told = {one.words.split(" by ")[0]: one.words for one in overview(runs).summary}
    assert "by 0.20 [0.10, 0.30] nats" in told["The ascent raised the batch loss"]


def test_a_digit_beyond_the_sampling_error_of_the_data_is_not_shown(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "seeds": {"init": 0}})
    store.append("steps", {"step": 5, "loss": 1.0})
    rows = {"lambda_max": (12.34567, 1e-4), "lambda_max_population": (11.0, 3.0)}
    for measure, (value, error) in rows.items():
        ends = {"stderr": error if "population" in measure else None, "low": value - error, "high": value + error}
        store.append("probes", {"step": 5, "measure": measure, "value": value, "converged": True, **ends})
    store.close("finished", "done")
    words = " ".join(one.words for one in overview([Run.open(tmp_path / "a")]).summary)
    assert "λ_max is 12.3 ± 3.0" in words
    assert "12.34" not in words


def test_planned_steps_learning_rate_and_threshold_are_told_as_numbers(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "config": {"steps": 50}, "training_samples": 100})
    for step in range(1, STEPS + 1):
        store.append("steps", {"step": step, "loss": 1.0, "lr": 0.25 if step < 20 else 0.125})
    for measure, number in (("loss", 1.0), ("lambda_max", 8.0), ("sharpness_edge_ratio", 0.5)):
        bound = {"low": 0.99 * number, "high": 1.01 * number, "converged": True}
        store.append("probes", {"step": 30, "measure": measure, "value": number, **bound})
    config = {"config": {"steps": 50, "batch_size": 100}}
    store.close("finished", "done")
    facts = json.loads((store.path / "run.json").read_text())
    (store.path / "run.json").write_text(json.dumps({**facts, **config}))
    words = " ".join(one.words for one in overview([Run.open(tmp_path / "a")]).summary)
    assert "finished after 40 steps of 50 planned" in words
    assert "at its peak 0.5000 ± 0.0050 at step 30 (λ_max 8.000 ± 0.080, threshold 16.00, learning rate 0.125)" in words
    assert "At step 30, the last evaluation of the curvature, the sharpness λ_max is" in words


def test_the_names_of_exceptions_are_no_words_of_a_page(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "seeds": {"init": 0}})
    store.append("steps", {"step": 1, "loss": 1.0})
    store.close("failed", "RuntimeError: sizes do not fit")
    facts = json.loads((store.path / "run.json").read_text())
    gap = {"instrument": "curvature", "step": 1, "why": "torch.OutOfMemoryError: tried to allocate 3 GiB"}
    (store.path / "run.json").write_text(json.dumps({**facts, "curvature_gaps": [gap]}))
    for page in PAGES.values():
        text = " ".join(render(page([Run.open(tmp_path / "a")]), "text").split())
        assert "the computation failed: sizes do not fit" in text
        assert "RuntimeError" not in text
        assert "OutOfMemoryError" not in text
    assert "memory ran out: tried to allocate 3 GiB" in " ".join(
        render(overview([Run.open(tmp_path / "a")]), "text").split()
    )


def test_what_an_arm_is_stands_at_its_first_use_and_a_figure_is_found_by_its_name(demo_runs: list[Run]) -> None:
    text = " ".join(render(overview(demo_runs), "text").split())
    assert text.index("arm") < text.index("(an arm: runs of the same settings that differ by their seeds)") < 200
    assert "[figure loss]" in text
    assert "Training loss [loss]" in text


def test_an_empty_run_has_a_screen_too(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "seeds": {"init": 0}})
    store.close("finished", "done")
    first = overview([Run.open(tmp_path / "a")]).summary[0]
    assert (first.words, first.severity) == ("The run finished after 0 steps; no loss was recorded.", "look")
    assert overview([]).summary


def test_the_loss_of_a_run_that_diverged_is_not_told_as_that_of_its_last_evaluation(tmp_path: Path) -> None:
    found = {name: written(tmp_path / name, STORIES[name]) for name in ("diverged", "healthy")}
    told = " ".join(one.words for one in overview([found["diverged"]]).summary)
    assert "went from" not in told
    assert "steps were taken." in told
    assert "went from" in " ".join(one.words for one in overview([found["healthy"]]).summary)


def test_an_error_that_no_reader_needs_is_told_as_small() -> None:
    assert measured(Quantity(12.7389123, error=2.4e-5)) == "12.74 ± <0.001"
    assert measured(Quantity(12.7389123, error=0.024)) == "12.739 ± 0.024"
    assert measured(Quantity(0.0, error=1e-9)).endswith("e-09")


def test_what_an_optimizer_does_not_have_is_not_told_as_missing(tmp_path: Path) -> None:
    report = dynamics([written(tmp_path / "run", STORIES["healthy"])])
    assert any(one.what.startswith("Fisher energy") for one in report.missing)
    assert not any("Fisher energy" in one.words for one in report.summary)
