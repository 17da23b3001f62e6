"""The search for the split of twin ranges: least error of all that it tried."""

import dataclasses

import numpy as np
import pytest

from cuattn.choice import measure
from cuattn.choice.measure import measure_error
from cuattn.choice.twin_search import search_twin
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference.distributions import make

SIZES = {
    "batch": 1,
    "num_q_heads": 2,
    "num_kv_heads": 1,
    "seqlen_q": 24,
    "seqlen_kv": 150,
    "head_dim": 32,
}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr(measure, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture(scope="module")
def qkv():
    return make("normal", **SIZES)


def rmse(qkv, split):
    scheme = dataclasses.replace(PRESETS["twin"], p_split=split)
    return measure_error(*qkv, scheme=scheme, by_source=False).metrics["rmse"]


def test_best_of_all_splits_is_found(qkv):
    found = search_twin(*qkv)
    errors = [rmse(qkv, split) for split in range(1, 16)]
    assert [split for split, _ in found.table] == [*range(1, 16)]
    assert [error for _, error in found.table] == pytest.approx(errors)
    best = 1 + int(np.argmin(errors))
    assert found.scheme.p_split == best
    assert dataclasses.replace(found.scheme, name="twin", p_split=4) == PRESETS["twin"]


def test_sharper_attention_wants_another_split():
    """Large probabilities only need the coarse range; spread ones need a fine one."""
    flat = search_twin(*make("normal", **SIZES)).scheme.p_split
    peaked = search_twin(*make("peaked", **SIZES)).scheme.p_split
    assert flat != peaked


def test_squared_errors_of_calls_are_summed(qkv):
    short = make("peaked", **{**SIZES, "seqlen_q": 8})
    found = search_twin(*zip(qkv, short, strict=True), splits=[3, 6])
    for split, error in found.table:
        # 24 rows and 8.
        expected = np.sqrt(0.75 * rmse(qkv, split) ** 2 + 0.25 * rmse(short, split) ** 2)
        assert error == pytest.approx(expected)


def test_scheme_is_named_after_another_split(qkv):
    assert search_twin(*qkv, splits=[4]).scheme == PRESETS["twin"]
    assert search_twin(*qkv, splits=[6]).scheme.name == "twin-6"


def test_search_is_readable(qkv):
    titles, *rows = str(search_twin(*qkv, splits=[2, 6])).splitlines()
    assert titles.split() == ["p_split", "RMSE"]
    assert [row.split()[0] for row in rows] == ["2", "6"]
    assert sum(row.endswith("best") for row in rows) == 1


def test_nothing_to_attend_to_is_no_error():
    empty = [np.zeros((0, 1, 4, 32), np.float32)] * 3
    assert search_twin(*empty, splits=[3, 4]).table == ((3, 0.0), (4, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "int8"}, "scheme.p_range must be 'twin'"),
        ({"splits": [0]}, r"scheme\.p_split must be one of"),
        ({"splits": []}, "splits must be at least one"),
        ({"q": np.full((1, 2, 24, 32), np.inf, np.float32)}, r"q\[0, 0, 0, 0\] must be a finite"),
    ],
)
def test_bad_arguments_are_named(qkv, change, message):
    arguments = {**dict(zip("qkv", qkv, strict=True)), "splits": [6], **change}
    with np.errstate(all="ignore"), pytest.raises(ArgumentError, match=message):
        search_twin(**arguments)
