"""Deduplication of quantities that were measured more than once."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings, strategies as st

from lossscope.landscape.analysis.series import probe_series
from lossscope.landscape.run import Run
from lossscope.landscape.storage.deduplicate import deduplicate
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import columns

OWN = {"mode": "eval", "loss_kind": "CrossEntropy", "data_hash": "own", "engine": "lossscope"}


def table(*rows):
    filled = [{"step": 1, "measure": "trace", "tensor": None, **OWN, **row} for row in rows]
    return pd.DataFrame(filled, columns=[*columns("probes")])


def values(rows, data_hash="own"):
    return deduplicate(rows, data_hash)["value"].tolist()


def test_the_row_written_last_is_kept():
    assert values(table({"value": 1.0}, {"value": 2.0}, {"value": 3.0, "step": 2}, {"value": 4.0, "step": 2})) == [2, 4]


def test_our_engine_is_preferred_whichever_was_last():
    assert values(table({"value": 1.0}, {"value": 2.0, "engine": "pyhessian"})) == [1]
    assert values(table({"value": 1.0, "engine": "pyhessian"}, {"value": 2.0}, {"value": 3.0})) == [3]
    assert values(table({"value": 1.0, "engine": "pyhessian"}, {"value": 2.0, "engine": "pyhessian"})) == [2]


def test_a_block_and_the_whole_are_two_numbers():
    assert values(table({"value": 1.0}, {"value": 2.0, "tensor": "0"}, {"value": 3.0, "tensor": "0"})) == [1, 3]


def test_rows_of_other_data_mode_or_loss_are_left_out():
    for other in ({"data_hash": "mine"}, {"mode": "train"}, {"loss_kind": "Squared"}):
        assert values(table({"value": 1.0}, {"value": 2.0, **other}, {"value": 3.0, "step": 2, **other})) == [1]


def test_a_run_without_data_of_its_own_takes_those_it_was_first_measured_on():
    rows = table({"value": 1.0, "data_hash": "mine"}, {"value": 2.0, "data_hash": "other"})
    assert values(rows, None) == [1]


def test_a_measure_on_data_of_its_own_stands_by_itself():
    batches = {"measure": "batch_sharpness", "data_hash": "batches"}
    rows = table({"value": 1.0}, {"value": 2.0, **batches}, {"value": 3.0, "step": 2, **batches})
    assert values(rows) == [1, 2, 3]


def test_rows_without_a_data_hash_are_kept():
    assert values(table({"value": 1.0, "data_hash": None, "engine": None, "mode": None, "loss_kind": None})) == [1]


def test_an_empty_table_stays_empty():
    assert not len(deduplicate(table(), "own"))


@settings(max_examples=25)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "step": st.integers(0, 2),
                "measure": st.sampled_from(["trace", "lambda_max"]),
                "tensor": st.sampled_from([None, "0"]),
                "engine": st.sampled_from(["lossscope", "pyhessian", None]),
                "data_hash": st.sampled_from(["own", "other"]),
                "value": st.floats(0, 1),
            }
        ),
        max_size=12,
    )
)
def test_each_quantity_occurs_once_and_the_rule_is_idempotent(rows):
    found = table(*sorted(rows, key=lambda row: row["step"]))
    once = deduplicate(found, "own")
    assert not once.duplicated(["step", "measure", "tensor"]).any()
    pd.testing.assert_frame_equal(deduplicate(once, "own"), once)
    assert once["step"].is_monotonic_increasing
    own = found[found["data_hash"] == "own"]
    asked = set(zip(own["step"], own["measure"], own["tensor"].fillna(""), strict=True))
    assert asked <= set(zip(once["step"], once["measure"], once["tensor"].fillna(""), strict=True))


def test_a_run_shows_all_rows_and_its_series_the_deduplicated_ones(tmp_path):
    store = RunStore.create(tmp_path / "a", {"data_hash": "own"})
    for value, engine in ((1.0, "lossscope"), (2.0, "lossscope"), (9.0, "pyhessian")):
        store.append("probes", {"step": 4, "measure": "lambda_max", "value": value, **OWN, "engine": engine})
    store.close("finished", "done")
    run = Run.open(store.path)
    assert run.probes["value"].tolist() == [1.0, 2.0, 9.0]
    assert run.estimates["value"].tolist() == [2.0]
    assert probe_series(run, "lambda_max").y.tolist() == [2.0]
