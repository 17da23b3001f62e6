"""`measure_error` of caches: by how old tokens are, and against its parts."""

from dataclasses import asdict

import numpy as np
import pytest

from cuattn import KVCache
from cuattn.choice import measure
from cuattn.choice.cache_error import runs_of_ages
from cuattn.choice.measure import measure_error
from cuattn.errors import ArgumentError
from cuattn.kv_format import KVFormat
from cuattn.reference import exact
from cuattn.reference.distributions import make
from cuattn.reference.metrics import metrics, relative_l2

# The newest 263 tokens, 16 units and what has begun, and the first 16 have 8 bits.
TOKENS = 1031
SIZES = {
    "batch": 2,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "seqlen_q": 3,
    "seqlen_kv": TOKENS,
    "head_dim": 64,
}
NESTED = [(1, 16), (17, 64), (65, 263), (264, 1015), (1016, 1031)]


@pytest.fixture(scope="module")
def qkv():
    return make("normal", **SIZES)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(measure, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


def check_fewer_bits_cost_more(report):
    """Of nested codes; steps of 4 bits are about 16 times those of 8."""
    assert [(x.ages.start, x.ages.stop - 1) for x in report.by_age] == NESTED
    assert [(x.k_bits, x.v_bits) for x in report.by_age] == 3 * [(8, 8)] + [(4, 4), (8, 8)]
    fine = [x for x in report.by_age if x.k_bits == 8]
    (coarse,) = (x for x in report.by_age if x.k_bits == 4)
    for name in ("k", "v"):
        assert all(0.004 < asdict(x)[name] < 0.008 for x in fine)
        assert 12 < asdict(coarse)[name] / asdict(fine[0])[name] < 20
    assert coarse.output > 10 * max(x.output for x in fine)
    # Errors of different tokens are independent; what is left is of queries and P.
    total = np.sqrt(sum(x.output**2 for x in report.by_age))
    assert report.metrics["relative_l2"] == pytest.approx(total, rel=0.1)


def test_old_tokens_of_nested_codes_have_4_bits(qkv, without_gpu):
    report = measure_error(*qkv, cache={"bits": 4})
    check_fewer_bits_cost_more(report)
    assert asdict(report.shape) == SIZES
    needed = KVCache.bytes_needed(2, 2, 64, TOKENS, bits=4)
    assert report.nbytes == needed
    assert report.bits_per_element == 8 * needed / (2 * qkv[1].size)


@pytest.mark.parametrize(
    ("options", "bits"),
    [({}, (8, 8)), ({"k_bits": 8, "v_bits": 4, "group": 32, "v_zero": True}, (8, 4))],
)
def test_figures_are_those_of_the_cache_and_of_float64(qkv, without_gpu, options, bits):
    q, k, v = qkv
    report = measure_error(q, k, v, is_causal=True, scale=0.2, cache=options)
    cache = KVCache(2, 2, 64, TOKENS, device="cpu", **options)
    cache.append(k, v)
    reference, _ = exact.attention(q, k, v, is_causal=True, scale=0.2)
    o = cache.attend(q, is_causal=True, scale=0.2)
    assert report.metrics == metrics(o, reference)
    assert report.format == cache.format
    keys, values = cache.gather("float32")
    newest = [
        np.where(np.arange(TOKENS)[:, None] >= TOKENS - 16, *x) for x in ((keys, k), (values, v))
    ]
    found, _ = exact.attention(q, *newest, is_causal=True, scale=0.2)
    first = report.by_age[0]
    assert (first.k_bits, first.v_bits) == bits
    assert first.k == relative_l2(keys[:, :, -16:], k[:, :, -16:])
    assert first.v == relative_l2(values[:, :, -16:], v[:, :, -16:])
    assert first.output == pytest.approx(relative_l2(found, reference), rel=1e-9)


def test_layouts_and_a_given_reference_make_no_difference(qkv, without_gpu):
    expected = measure_error(*qkv, cache={"bits": 4})
    swapped = [x.swapaxes(1, 2) for x in qkv]
    assert measure_error(*swapped, layout="NHD", cache={"bits": 4}) == expected
    reference, _ = exact.attention(*qkv)
    assert measure_error(*qkv, cache={"bits": 4}, reference=reference) == expected


def test_inputs_are_left_alone_and_progress_comes_to_its_end(qkv, without_gpu):
    before, calls = [x.copy() for x in qkv], []
    measure_error(*qkv, cache={}, progress=lambda *call: calls.append(call))
    for x, y in zip(qkv, before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert calls[-1][0] == calls[-1][1]


def test_the_report_is_readable(qkv, without_gpu):
    lines = str(measure_error(*qkv, cache={"bits": 4}, is_causal=True)).splitlines()
    assert "emulated" in lines[0]
    assert "tokens 3 over 1031, head_dim 64, causal" in lines[0]
    rows = [line.split() for line in lines[-len(NESTED) :]]
    assert [(int(a), int(b)) for a, _, b, *_ in rows] == NESTED
    assert [row[3] for row in rows] == ["8/8", "8/8", "8/8", "4/4", "8/8"]


@pytest.mark.parametrize(
    ("tokens", "few", "expected"),
    [
        (1, [1], [1]),
        (16, [16], [16]),
        (17, [17], [16, 17]),
        (300, [300], [16, 64, 256, 300]),
        # Newest with more bits, those between, and the first.
        (300, [271, 13, 16], [16, 64, 271, 284, 300]),
        (320, [272, 32, 16], [16, 64, 272, 304, 320]),
        (5000, [256, 4728, 16], [16, 64, 256, 1024, 4096, 4984, 5000]),
        (40, [24, 16], [24, 40]),
    ],
)
def test_runs_of_ages_end_where_bits_change(tokens, few, expected):
    fine = np.concatenate([np.full(n, i % 2 == 0) for i, n in enumerate(few)])[::-1]
    runs = runs_of_ages(tokens, fine)
    assert [x.stop - 1 for x in runs] == expected
    assert [x.start for x in runs] == [1, *(x + 1 for x in expected[:-1])]
    if len(few) == 1:
        assert runs_of_ages(tokens, None) == runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache": {"bit": 4}}, r"cache must be options of KVCache: some of \['bits', .*'bit'"),
        ({"cache": 4}, 'cache must be a mapping of options of KVCache, such as {"bits": 4}, .* 4'),
        ({"cache": "int4"}, "cache must be a mapping .* got 'int4'"),
        ({"cache": {"capacity": 4096}}, "cache must be options of KVCache"),
        ({"cache": {"bits": 5}}, "bits must be"),
        ({"cache": {}, "scheme": "fp16"}, "scheme must be left out with cache"),
        ({"cache": {}, "v": np.zeros((2, 2, TOKENS, 32), np.float32)}, "v.shape must be"),
        ({"cache": {}, "k": np.zeros((2, 2, 0, 64)), "v": np.zeros((2, 2, 0, 64))}, "a token or"),
        ({"cache": {}, "reference": np.zeros(3)}, "reference.shape"),
    ],
)
def test_bad_arguments_are_named(qkv, without_gpu, change, message):
    with pytest.raises(ArgumentError, match=message):
        measure_error(**{**dict(zip("qkv", qkv, strict=True)), **change})


@pytest.mark.gpu
def test_a_gpus_cache_is_measured_there(qkv):
    import cupy

    host = [x.astype(np.float16) for x in qkv]
    report = measure_error(*host, cache={"bits": 4})
    assert report.backend == "gpu"
    check_fewer_bits_cost_more(report)
    assert measure_error(*map(cupy.asarray, host), cache={"bits": 4}) == report
    assert report.format == KVFormat(64, 4, 4, 64, rotate=True, nested=True)
