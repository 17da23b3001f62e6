"""Errors of schemes and caches on one input, and room for a case, with kernels made up."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.bench import caches, errors, exact, left_out
from cuattn.bench.cases import Case, decoding
from cuattn.bench.left_out import GIB, room_for
from cuattn.bench.ours import Run
from cuattn.presets import PRESETS
from cuattn.reference import exact as reference
from cuattn.reference.distributions import make

POINT = Case.square(1, 2, 24, 32, True), "outliers"
CACHE = decoding(1, 2, 24, 4, 64), "normal"
SCALE = 1.01  # of every output, so that its error is known


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Stand in for it: what kernels give is attention in float64, a hundredth too large."""

    def inputs(case, name):
        sizes = {k: v for k, v in vars(case).items() if k != "is_causal"}
        return make(name, **sizes)

    def attention(q, k, v, *, is_causal):
        return SimpleNamespace(get=lambda: reference.attention(q, k, v, is_causal=is_causal)[0])

    def prepare(q, k, v, case, scheme):
        o, _ = reference.attention(q, k, v, is_causal=case.is_causal)
        return Run(kernel=None, end_to_end=lambda: Array(SCALE * o))

    class Array(np.ndarray):
        def __new__(cls, x):
            return np.asarray(x).view(cls)

        def get(self):
            return np.asarray(self)

    class Cache:
        def __init__(self, batch, heads, head_dim, tokens, **options):
            assert (batch, heads, head_dim, tokens) == (1, 2, 64, 24)
            assert options["bits"] in (4, 8)

        def append(self, k, v):
            self.kv = k, v

        def attend(self, q, is_causal):
            o, _ = reference.attention(q, *self.kv, is_causal=is_causal)
            return Array(SCALE * o)

    def bound(baseline, q, k, v, case, left_out):
        if baseline.name == "fails":
            left_out(f"fails, {case}", "no such shape")
            return None
        return prepare(q, k, v, case, "fp16")

    cupy = SimpleNamespace(from_dlpack=lambda x: x, float64=np.float64)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(errors, "inputs", inputs)
    monkeypatch.setattr(errors, "give_back", lambda: None)
    monkeypatch.setattr(exact, "attention", attention)
    monkeypatch.setattr(errors.ours, "prepare", prepare)
    monkeypatch.setattr(errors.ours, "family", lambda scheme, case: "attention_mma")
    monkeypatch.setattr(errors.baselines, "bound", bound)
    monkeypatch.setattr(errors.cuattn, "KVCache", Cache)


def test_errors_are_those_against_float64():
    told = {}
    present = [SimpleNamespace(name="other"), SimpleNamespace(name="fails")]
    rows = list(errors.of_schemes(POINT, ["int8", PRESETS["fp16"]], present, told.__setitem__))
    assert [(row.scheme, row.family) for row in rows] == [
        ("int8", "attention_mma"),
        ("fp16", "attention_mma"),
        ("other", "baseline"),
    ]
    for row in rows:
        assert (row.distribution, row.seqlen_kv, row.is_causal) == ("outliers", 24, True)
        assert row.metrics["relative_l1"] == pytest.approx(SCALE - 1)
    assert told == {"fails, N24 D32 causal": "no such shape"}


def test_an_output_that_is_not_finite_has_no_error(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SCALE", np.nan)
    (row,) = errors.of_schemes(POINT, ["int8"], [], {}.__setitem__)
    assert row.metrics["relative_l1"] is None


def test_caches_of_all_formats_are_measured():
    rows = list(errors.of_caches(CACHE))
    assert [row.scheme for row in rows] == [*caches.SCHEMES]
    assert {row.family for row in rows} == {"decode"}
    assert all(row.metrics["relative_l1"] == pytest.approx(SCALE - 1) for row in rows)


@pytest.fixture
def given_back(monkeypatch):
    """Let the GPU have 4 of 8 GiB free; return how often memory was given back."""
    runtime = SimpleNamespace(memGetInfo=lambda: (4 * GIB, 8 * GIB))
    sys.modules["cupy"].cuda = SimpleNamespace(runtime=runtime)
    times = []
    monkeypatch.setattr(left_out, "give_back", lambda: times.append(1))
    return times


@pytest.mark.parametrize(("needed", "fits"), [(3, True), (5, False)])
def test_a_case_without_room_is_told(given_back, needed, fits):
    told = {}
    with room_for(POINT[0], needed * GIB, told.__setitem__) as has_room:
        # What a case took that failed is let go of only when the next one comes.
        assert len(given_back) == 1
        assert has_room is fits
    assert len(given_back) == 2
    assert told == ({} if fits else {"N24 D32 causal": "5.0 GiB needed, 4.0 free"})


def test_memory_is_given_back_of_a_case_that_fails(given_back):
    with pytest.raises(MemoryError), room_for(POINT[0], 0, {}.__setitem__):
        raise MemoryError
    assert len(given_back) == 2
