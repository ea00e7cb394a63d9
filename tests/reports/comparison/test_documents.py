"""Documents of verdicts: every status in text, JSON and HTML, hostile names, widths."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hand_made_verdicts import EVERY, row, verdict

from html_page import HtmlPage, assert_inert
from lossscope.landscape.run import open_runs
from lossscope.landscape.verdicts.contrasts import contrasts
from lossscope.landscape.verdicts.judge import compare
from lossscope.landscape.verdicts.verdict import Note
from lossscope.reports.comparison.contrasts import contrasts_report
from lossscope.reports.comparison.report import check_report, compare_report, exit_code
from lossscope.reports.comparison.rows import row_texts
from lossscope.reports.render.rendering import render

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\nnext"
FORMATS = ("text", "json", "markdown", "html")


@pytest.mark.parametrize("name", EVERY)
def test_every_status_is_said_with_its_sentence_in_every_format(name):
    one = EVERY[name]
    document = compare_report(one, [], version="0.2.0")
    text, data = render(document, "text"), json.loads(render(document, "json"))
    words = one.status.replace("_", " ")
    assert f"{words}: {one.sentence}" in " ".join(text.split())
    (section,) = data["sections"]
    assert (section["status"], section["sentence"]) == (words, one.sentence)
    assert section["data"]["status"] == one.status
    assert len(section["data"]["rows"]) == len(one.rows)


@pytest.mark.parametrize("name", ["supported", "missing", "one", "none", "identity"])
def test_a_page_says_status_sentence_and_every_row(name):
    one = EVERY[name]
    page = assert_inert(render(compare_report(one, [], version="0.2.0"), "html"))
    words = page.words
    assert one.status.replace("_", " ") in words
    assert one.sentence in words
    assert all(one.label in words for one in one.rows)
    assert len(set(page.identifiers)) == len(page.identifiers)


def test_the_text_of_a_comparison_has_table_sentence_and_what_was_not_tried():
    lines = render(compare_report(EVERY["supported"], [], version="0.2.0"), "text").splitlines()
    assert lines[0] == "sync against base on digits-mlp at training loss 0.02: 10 pairs of seeds"
    table = [line.split("  ") for line in lines[4:9]]
    assert [[cell.strip() for cell in one if cell.strip()] for one in table] == [
        ["worst, relative", "0.44", "0.41 - 0.47", "10 of 10", "11 %", "flatter"],
        ["average, relative", "0.57", "0.53 - 0.61", "10 of 10", "11 %", "flatter"],
        ["worst, balanced", "0.60", "0.56 - 0.64", "10 of 10", "11 %", "flatter"],
        ["average, balanced", "0.71", "0.66 - 0.76", "10 of 10", "11 %", "flatter"],
        ["raw lambda_max", "0.47", "0.44 - 0.50", "10 of 10", "11 %", "does not count: a rescaling changes it"],
    ]
    assert lines[10].startswith("SUPPORTED: sync is flatter")
    assert lines[-1] == "  Not tried: another task; another learning rate of base."


def test_one_pair_has_no_interval_and_no_word():
    text = render(compare_report(EVERY["one"], [], version="0.2.0"), "text")
    assert text.count("one pair: no verdict") == 4
    assert " - " not in text
    assert "0.44" in text


def test_few_pairs_have_no_word():
    assert render(compare_report(EVERY["few"], [], version="0.2.0"), "text").count("3 pairs: too few") == 4


@pytest.mark.parametrize("sentence", [EVERY["missing"].sentence, "Too few pairs."])
def test_open_rows_have_no_number_and_say_why_once(sentence: str):
    (reasons,) = (row.reasons for row in EVERY["missing"].rows if row.word == "open")
    rows = tuple(replace(row, word="open", ratio=math.nan, reasons=reasons) for row in EVERY["missing"].rows)
    text = render(
        compare_report(replace(EVERY["missing"], rows=rows, sentence=sentence), [], version="0.2.0"), "text", width=200
    )
    assert text.count("open: missing level") == len(rows) > 1
    assert text.count("1 of 10 pairs never reached loss 0.02 (base-s3: 0.05)") == 1
    assert "nan" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_text_keeps_to_its_width(width):
    long = verdict(a="an-arm-with-a-rather-long-name-of-its-own", b="another-arm-with-a-rather-long-name")
    documents = [compare_report(one, [], version="0.2.0") for one in (*EVERY.values(), long)]
    documents.append(check_report([*EVERY.values()], [], version="0.2.0"))
    for document in documents:
        assert max(map(len, render(document, "text", width=width).splitlines())) <= width


def test_facts_are_sentences_and_what_is_missing_is_left_out():
    figures = {
        "sigma_star": {
            "digits-mlp": {"sync": {"value": 0.338, "n": 10, "of": 10}, "base": {"value": 0.281, "n": 9, "of": 10}}
        },
        "test_loss": [
            {"task": "digits-mlp", "a": "sync", "b": "base", "n": 10, "a_value": 0.0681, "b_value": 0.0744}
            | {"difference": -0.0063, "low": -0.0121, "high": -0.0005, "differences": [-0.006] * 10}
        ],
        "cost": {
            "digits-mlp": {"sync": {"gradients": 824.2, "ascents": 412.1}, "base": {"gradients": 460.0, "ascents": 0.0}}
        },
        "lowest": 0.0004,
        "other_levels": [{"level": 0.5, "status": "EQUIVALENT"}, {"level": 0.1, "status": "SUPPORTED"}],
        "raw_says": "Raw numbers say the opposite.",
    }
    notes = (
        Note("LEVEL_SENSITIVE", "said by the fact"),
        Note("ONE_TASK", "said by Not tried"),
        Note("NOISY_MEASURE", "Noisy."),
    )
    text = render(compare_report(verdict(figures=figures, notes=notes), [], version="0.2.0"), "text")
    for words in (
        "Each weight of sync may be off by 34 % (base: 28 %, 9 of 10 runs) before the loss rises by 0.1.",
        "Test loss there: 0.068 against 0.074, difference -0.006 (-0.012 to -0.001).",
        "Up to that loss: sync 824 gradients, 412 ascents; base 460 gradients, no ascents.",
        "The lowest training loss that all runs reach is 0.0004.",
        "At other training losses: EQUIVALENT at 0.5; SUPPORTED at 0.1.",
        "Raw numbers say the opposite.",
        "Noisy.",
    ):
        assert words in text
    assert "said by" not in text


def test_claims_have_one_line_each_and_are_counted():
    document = check_report([*EVERY.values()], [], version="0.2.0")
    lines = render(document, "text").splitlines()
    assert lines[0].startswith("C1a  SUPPORTED     sync is flatter than base")
    assert lines[6].startswith("C7   NOT JUDGED    3 pairs")
    counted = (
        "10 claims: 1 supported, 2 contradicted, 1 equivalent, 1 mixed, 2 inconclusive, 3 not judged (exit code 3)"
    )
    assert lines[10] == counted


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["supported"], 0),
        (["supported", "inconclusive"], 4),
        (["none"], 4),
        (["supported", "equivalent", "none"], 3),
        (["mixed"], 3),
        (["contradicted"], 3),
    ],
)
def test_the_exit_code_says_whether_the_runs_speak_against_a_claim(names, code):
    assert exit_code([EVERY[name] for name in names]) == code


@pytest.mark.parametrize("format", FORMATS)
def test_names_with_markup_and_escape_sequences_are_inert(format):
    one = verdict(a=HOSTILE, b="base", claim=HOSTILE, sentence=f"{HOSTILE} is flatter.", source=HOSTILE)
    series = [{"loss": [1.0, 0.1, 0.01], "value": [3.0, 2.0, 1.0]}]
    figures = {
        "series": {HOSTILE: {HOSTILE: series}},
        "noise_curve": {
            HOSTILE: {HOSTILE: {"x": [0.1, 1.0], "y": [0.1, 1.0], "low": [0.1, 1.0], "high": [0.1, 1.0], "n": 1}}
        },
    }
    one = replace(one, figures=figures, rows=tuple(replace(row, task=HOSTILE) for row in one.rows))
    for document in (compare_report(one, [], version="0.2.0"), check_report([one], [], version="0.2.0")):
        made = render(document, format)
        assert "\x1b" not in made
        if format == "html":
            page = assert_inert(made)
            assert "<img src=x" in page.words
        if format == "text":
            assert not [line for line in made.splitlines() if line.startswith("next")]


@pytest.mark.parametrize("ratio", [1e-12, 1e-5, 0.003, 250.0, 1e9])
def test_ratios_of_any_size_are_written_and_drawn(ratio):
    one = verdict(rows=(row(0, ratio), row(1, ratio, spread=1e-7), row(2, ratio, spread=3.0)))
    document = compare_report(one, [], version="0.2.0")
    assert "nan" not in render(document, "text")
    assert render(document, "html").endswith("\n")


def test_several_tasks_and_arms_have_columns_of_their_own():
    rows = (row(0, 0.5), replace(row(0, 0.6), task="digits-conv"), row(0, 0.7, b="adamw"))
    text = render(
        compare_report(verdict(rows=rows, pairs={"digits-mlp": 10, "digits-conv": 8}), [], version="0.2.0"), "text"
    )
    assert "sync against base and sync against adamw on digits-mlp and digits-conv" in text
    assert "digits-conv   sync / base" in text


def test_a_comparison_of_recorded_runs_has_its_figures(study):
    runs = open_runs(study)
    found = compare("sync", "base", runs, level=0.02)
    document = compare_report(found, runs, version="0.2.0", command="lossscope compare sync base")
    assert [figure.key for figure in document.sections[0].figures] == ["rows", "sharpness", "test_loss"]
    trajectory = document.sections[0].figures[1]
    assert trajectory.x.falling
    assert [mark.value for mark in trajectory.marks] == [0.02]
    sync, base = ([one for one in curve.median if one is not None] for curve in trajectory.curves)
    assert all(a < b for a, b in zip(sync, base, strict=False))
    page = render(document, "html")
    assert page == render(document, "html")
    for words in ("2e6774e4", "lossscope 0.2.0", "lossscope compare sync base", "6 seeds"):
        assert words in page


def test_a_loss_that_not_every_seed_reached_is_not_drawn():
    series = [{"loss": [1.0, 0.1, 0.01], "value": [3.0, 2.0, 1.0]}, {"loss": [1.0, 0.3], "value": [3.0, 2.5]}]
    one = verdict(figures={"series": {"digits-mlp": {"sync": series}}})
    figure = compare_report(one, [], version="0.2.0").sections[0].figures[1]
    (curve,) = figure.curves
    known = [x for x, y in zip(curve.x, curve.median, strict=True) if y is not None]
    assert min(known) >= 0.3 > 0.9 * min(known)


def test_contrasts_are_a_table_with_costs_and_reasons(study):
    runs = open_runs(study)
    table = contrasts({"ascent": ("sync", "base"), "nothing": ("snyc", "base")}, runs, level=0.02)
    document = contrasts_report(table, runs, version="0.2.0", lead=["20 runs."])
    for width in (80, 120):
        text = render(document, "text", width=width)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert "95 % intervals for the table as a whole (97.5 % each)" in words
        assert "did you mean sync?" in words
        assert "not judged" in words
    line = next(line for line in render(document, "text").splitlines() if line.startswith("ascent"))
    assert line.split()[-1] == "flatter"
    spent = [line for line in render(document, "text").splitlines() if line.startswith("ascent")][1]
    assert "11 / 5" in spent
    assert "unequal" not in render(document, "text")  # one side takes ascents, the other none
    unequal = replace(table.contrasts[0], cost="sync took 50 % more gradients than base")
    text = render(contrasts_report(replace(table, contrasts=(unequal,)), runs, version="0.2.0"), "text")
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("ascent")] == ["flatter", "unequal"]
    assert "Unequal: the two sides differ" in text
    assert "the first of" not in text
    tasks = replace(unequal, verdict=replace(unequal.verdict, pairs={"digits-mlp": 6, "digits-conv": 6}))
    text = render(contrasts_report(replace(table, contrasts=(tasks,)), runs, version="0.2.0"), "text")
    assert "All of it on digits-mlp, the first of 2 tasks." in " ".join(text.split())
    data = json.loads(render(document, "json"))
    assert data["tables"]["contrasts"]["rows"][0]["verdict"] == "flatter"
    assert [section["key"] for section in data["sections"]] == ["ascent", "nothing"]
    assert data["sections"][0]["data"]["rows"][0]["differences"]
    assert HtmlPage(render(document, "html")).tags.count("svg") == 3


def test_json_has_null_where_a_number_is_missing():
    data = json.loads(render(compare_report(EVERY["missing"], [], version="0.2.0"), "json"))
    open_row = data["sections"][0]["data"]["rows"][1]
    assert open_row["ratio"] is None
    assert open_row["why"].startswith("MISSING_LEVEL")
    assert not math.isnan(data["sections"][0]["data"]["rows"][0]["ratio"])


def test_margin_and_confidence_of_a_verdict_are_those_of_its_table_and_page():
    one = verdict("EQUIVALENT", (1.0, 0.98, 1.02, 0.7), figures={"margin": 2.0, "confidence": 0.975})
    document = compare_report(one, [], version="0.2.0")
    text = render(document, "text")
    for words in ("97.5 % interval", "no difference above 100 %"):
        assert words in text
    assert "25 %" not in text
    forest = document.sections[0].figures[0]
    assert forest.band == (0.5, 2.0)
    assert "97.5 % interval. Grey band: differences below 100 %." in forest.caption


def test_contrasts_say_how_many_pairs_there_are_and_why_rows_are_open(study):
    runs = open_runs(study)
    even = render(contrasts_report(contrasts({"ascent": ("sync", "base")}, runs), runs, version="0.2.0"), "text")
    assert "flatter with it, 6 pairs of seeds." in " ".join(even.split())
    alone = [run for run in runs if run.name != "base-s5"]
    text = render(contrasts_report(contrasts({"ascent": ("sync", "base")}, alone), alone, version="0.2.0"), "text")
    assert "Left out, for want of a partner: sync-s5." in text
    missing = contrasts({"ascent": ("sync", "base")}, runs, level=1e-6)
    text = " ".join(render(contrasts_report(missing, runs, version="0.2.0"), "text").split())
    assert "Open: ascent. 6 of 6 pairs never reached loss 1e-06" in text


@pytest.mark.parametrize(
    ("ends", "noise", "texts"),
    [
        ((0.4123, 0.3123, 0.5123), 0.0, ("0.41", "0.31 - 0.51")),
        ((0.4123, 0.4103, 0.4143), 0.0, ("0.412", "0.410 - 0.414")),
        ((0.4123, 0.4103, 0.4143), 0.2, ("0.41", "0.41 - 0.41")),  # the measurement is less certain than the pairs
        ((5.1234, 2.1234, 9.1234), 0.0, ("5.1", "2.1 - 9.1")),
        ((52.1234, 21.1234, 91.1234), 0.0, ("52", "21 - 91")),
        ((5.1234, math.nan, math.nan), 0.5, ("5.1", "–")),
        ((5.1234, math.nan, math.nan), math.nan, ("5.12", "–")),
    ],
)
def test_a_ratio_has_the_digits_that_its_largest_known_error_allows(
    ends: tuple[float, float, float], noise: float, texts: tuple[str, str]
) -> None:
    value, low, high = ends
    assert row_texts(replace(row(0, value), ratio=value, low=low, high=high, noise=noise, n=5)) == texts
