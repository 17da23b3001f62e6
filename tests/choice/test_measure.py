"""`measure_error` against the reference that it is made of, and on the GPU against itself."""

import dataclasses
import time

import ml_dtypes
import numpy as np
import pytest

from cuattn.arrays.host import to_host
from cuattn.choice import measure
from cuattn.choice.measure import measure_error
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import attribute, emulate, exact
from cuattn.reference.arrays import Shape
from cuattn.reference.distributions import make
from cuattn.reference.masking import operations
from cuattn.reference.metrics import metrics

SIZES = {
    "batch": 2,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "seqlen_q": 40,
    "seqlen_kv": 150,  # more than one block of keys
    "head_dim": 32,
}


class Exporter:
    """An array that only speaks DLPack, as those of other libraries."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(measure, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture(scope="module")
def qkv():
    return make("sharp", **SIZES)


@pytest.mark.parametrize("scheme", PRESETS)
def test_emulation_is_that_of_the_reference(qkv, without_gpu, scheme):
    report = measure_error(*qkv, scheme=scheme, is_causal=True, scale=0.2)
    options = {"is_causal": True, "scale": 0.2}
    o, _ = emulate.attention(*qkv, scheme=scheme, **options)
    reference, _ = exact.attention(*qkv, **options)
    sources = attribute.attribute(*qkv, scheme=scheme, **options)
    # Outputs are float32 as q is: that adds errors of 2^-24, which none sees.
    assert report.metrics == pytest.approx(metrics(o, reference), rel=1e-3)
    assert report.by_source == {name: sources[name] for name in ("q", "k", "p", "v")}
    assert report.scheme.name == scheme
    assert (report.backend, report.seconds, report.tops) == ("emulation", None, None)
    assert dataclasses.asdict(report.shape) == SIZES


SCORES = {
    "window": {"window_size": (30, 5)},
    "cap": {"softcap": 5.0},
    "sinks": {"sinks": np.array([0.5, -1.0, 3.0, 0.0], np.float32)},
    "slopes": {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.01], np.float32), "is_causal": True},
    "bits": {"attn_mask": np.arange(150)[None, None, None] % 3 > 0},
    "floats": {"attn_mask": np.linspace(-2, 2, 150, dtype=np.float32)[None, None, None]},
}


@pytest.mark.parametrize("name", SCORES)
def test_options_of_scores_are_in_both(qkv, without_gpu, name):
    options = SCORES[name]
    report = measure_error(*qkv, **options)
    o, _ = emulate.attention(*qkv, **options)
    reference, _ = exact.attention(*qkv, **options)
    assert report.metrics == pytest.approx(metrics(o, reference), rel=1e-3)
    assert report.options == tuple(x for x in options if x != "is_causal")
    assert all(x in str(report).splitlines()[0] for x in report.options)
    # With all roundings it is what the emulation says: what smoothing took is put back.
    assert attribute.attribute(*qkv, **options)["all"] == pytest.approx(metrics(o, reference))


def test_neutral_options_are_none(qkv, without_gpu):
    plain = measure_error(*qkv, by_source=False)
    neutral = measure_error(*qkv, by_source=False, window_size=(-1, -1), softcap=0.0, sinks=None)
    assert neutral == plain


def test_a_cache_has_no_such_options(qkv, without_gpu):
    cap = {"softcap": 5.0, "cache": {"bits": 8}}
    with pytest.raises(ArgumentError, match="softcap must be left out with cache"):
        measure_error(*qkv, **cap)


def test_output_has_the_type_of_q(qkv, without_gpu):
    """With one key the output is a value itself, whose float16 is exact; in float32 it is not."""
    one_key = [qkv[0], qkv[1][:, :, :1], qkv[2][:, :, :1]]
    half = measure_error(*(x.astype(np.float16) for x in one_key), scheme="fp16")
    assert half.metrics["max_abs"] == 0.0
    assert measure_error(*one_key, scheme="fp16").metrics["max_abs"] > 0.0


def test_layouts_agree(qkv, without_gpu):
    swapped = [x.swapaxes(1, 2) for x in qkv]
    assert measure_error(*swapped, layout="NHD") == measure_error(*qkv)


def test_reference_can_be_given(qkv, without_gpu):
    reference, _ = exact.attention(*qkv)
    given = measure_error(*qkv, reference=reference, by_source=False)
    assert given == measure_error(*qkv, by_source=False)
    assert given.by_source is None
    with pytest.raises(ArgumentError, match=r"reference\.shape"):
        measure_error(*qkv, reference=reference[:1])


def test_progress_rises_to_its_end(qkv, without_gpu):
    calls = []
    measure_error(*qkv, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}
    assert len(done) > 10


def test_report_is_readable(qkv, without_gpu):
    text = str(measure_error(*qkv, is_causal=True))
    first, titles, *rows = text.splitlines()
    for part in (
        "int8",
        "emulated",
        "heads 4 over 2",
        "tokens 40 over 150",
        "head_dim 32",
        "causal",
    ):
        assert part in first
    assert titles.split() == ["error", "q", "k", "p", "v"]
    assert [row.split()[0] for row in rows] == list(measure_error(*qkv).metrics)
    timed = dataclasses.replace(measure_error(*qkv, by_source=False), seconds=2e-3, tops=300.0)
    assert str(timed).endswith("2.000 ms, 300.0 TOPS")


def test_operations_count_visible_keys():
    shape = Shape(2, 4, 1, 3, 5, 64)
    assert operations(shape, is_causal=False) == 4 * 64 * 2 * 4 * 3 * 5
    # Causal and aligned at the bottom right: rows see 3, 4 and 5 keys.
    assert operations(shape, is_causal=True) == 4 * 64 * 2 * 4 * (3 + 4 + 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "int5"}, "scheme must be"),
        ({"layout": "DNH"}, "layout must be"),
        ({"q": [[1.0]]}, "q must be an array"),
        ({"k": np.zeros((2, 2, 150, 32), np.int8)}, "k.dtype must be"),
        ({"v": Exporter(np.zeros((2, 2, 150, 32), np.int8))}, "v.dtype must be"),
        ({"v": np.zeros((2, 2, 149, 32), np.float32)}, "v.shape must be"),
        ({"scale": np.nan}, "scale must be"),
    ],
)
def test_bad_arguments_are_named(qkv, without_gpu, change, message):
    arguments = {**dict(zip("qkv", qkv, strict=True)), **change}
    with pytest.raises(ArgumentError, match=message):
        measure_error(**arguments)


def test_dlpack_arrays_in_host_memory_are_read(rng):
    x = rng.standard_normal((2, 3, 4, 8)).astype(np.float16)[:, ::2, :, :5]
    host = to_host(Exporter(x), "x")
    np.testing.assert_array_equal(host.values, x)
    assert (host.dtype, host.on_gpu) == ("float16", False)
    assert to_host(Exporter(x[:0]), "x").values.shape == (0, 2, 4, 5)


def test_bfloat16_is_widened(qkv):
    x = qkv[0].astype(ml_dtypes.bfloat16)
    host = to_host(x, "q")
    assert (host.values.dtype, host.dtype) == (np.float32, "bfloat16")
    np.testing.assert_array_equal(host.values, x.astype(np.float32))


def test_bfloat16_in_host_memory_is_emulated(qkv):
    """CuPy has no such type, so it is so on a GPU computer too."""
    report = measure_error(*(x.astype(ml_dtypes.bfloat16) for x in qkv), scheme="fp16")
    assert report.backend == "emulation"
    # P in 8 significant bits: relative errors of 2^-9 that average out, and the output's rounding.
    assert 5e-4 < report.metrics["relative_l1"] < 2**-8


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_gpu_is_measured_and_timed(qkv, layout):
    import cupy

    host = [
        x.astype(np.float16).swapaxes(1, 2) if layout == "NHD" else x.astype(np.float16)
        for x in qkv
    ]
    reports = [
        measure_error(*arrays, layout=layout, by_source=False)
        for arrays in (host, [cupy.asarray(x) for x in host])
    ]
    emulated, _ = emulate.attention(*(x.astype(np.float16) for x in qkv))
    reference, _ = exact.attention(*(x.astype(np.float16) for x in qkv))
    for report in reports:
        assert report.backend == "gpu"
        assert report.tops == pytest.approx(operations(report.shape, False) / report.seconds / 1e12)
        error = metrics(emulated, reference)["relative_l1"]
        assert report.metrics["relative_l1"] == pytest.approx(error, rel=0.05)
    assert reports[0].metrics == reports[1].metrics


@pytest.mark.gpu
@pytest.mark.alone
def test_what_the_host_takes_is_not_in_the_time(monkeypatch):
    import cupy

    q = cupy.zeros((1, 1, 8, 16), np.float16)

    def call(stream):
        time.sleep(2e-4)
        return q.copy()

    monkeypatch.setattr(measure, "FILLS", 100)  # the host may have other things to do
    _, seconds = measure._run(call, q, on_gpu=True)
    assert 0 < seconds < 1e-4
