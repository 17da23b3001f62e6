"""The features in docs/support.md are true: of arrays on a simulated GPU, and in host memory.

Tests marked gpu have CUDA graphs; `tools.tables.support` makes the table of schemes and GPUs.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import cuattn
from cuattn.arrays.device import TARGETS
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.plan.kernels import check_supported
from cuattn.presets import PRESETS
from cuattn.records.record import Record
from cuattn.reference import exact
from tools.tables.record_figures import Figures
from tools.tables.support import support

pytest.importorskip("cupy")
from ml_dtypes import bfloat16
from simulated_gpu import SimulatedGPU

PAGE = Path(cuattn.__file__).resolve().parent.parent / "docs" / "support.md"
YES, NO = "yes", "–"

QUERIES, KEYS = 20, 40
# Relative to the largest element: 8 bits of everything, or bfloat16.
TOLERANCE = 0.04


def features():
    """Return the columns' cells by the name of the row."""
    text = PAGE.read_text(encoding="utf-8").partition("| | quantized schemes |")[2]
    rows = [line.strip("|").split("|") for line in text.partition("\n\n")[0].splitlines()[2:]]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}


class Attention:
    """`attention` with a scheme."""

    def __init__(self, scheme, on_gpu=True):
        self.scheme, self.on_gpu = scheme, on_gpu

    def array(self, x, dtype, layout):
        x = (x.swapaxes(1, 2) if layout == "NHD" else x).astype(dtype, order="C")
        # The simulation has bfloat16 as the bits of one.
        return x.view(np.uint16) if self.on_gpu and dtype == bfloat16 else x

    def attend(self, q, k, v, **options):
        return cuattn.attention(q, k, v, scheme=self.scheme, **options)

    def attend_quantized(self, q, k, v):
        k8 = cuattn.quantize(k, operand="k", scheme=self.scheme)
        v8 = cuattn.quantize(v, operand="v", scheme=self.scheme)
        return self.attend(q, k8, v8)

    def attend_of_lengths(self, q, k, v, lengths):
        return self.attend(q, k, v, seqused_k=np.array(lengths, np.int32))

    def attend_in_pages(self, q, k, v):
        return self.attend(q, k, v, page_size=16)


class Cache(Attention):
    """A `KVCache` that has taken up all keys and values."""

    def __init__(self):
        super().__init__("int8")

    def attend(self, q, k, v, is_causal=False, layout="HND", counts=None, page_size=0, **options):
        batch, heads, tokens, head_dim = k.shape if layout == "HND" else k.swapaxes(1, 2).shape
        cache = cuattn.KVCache(batch, heads, head_dim, max(tokens, 1), page_size=page_size)
        cache.append(k, v, layout=layout, counts=counts)
        if options.pop("check_finite", False):
            raise UnsupportedError("check_finite is no option of a cache")
        return cache.attend(q, is_causal=is_causal, layout=layout, **options)

    def attend_quantized(self, q, k, v):
        raise UnsupportedError("a cache quantizes what it takes up")

    def attend_of_lengths(self, q, k, v, lengths):
        return self.attend(q, k, v, counts=lengths)


COLUMNS = [Attention("int8"), Attention("fp16"), Cache(), Attention("int8", on_gpu=False)]


class Feature:
    """A call of a column with its inputs, and what it is to be compared with."""

    def __init__(self, column, rng):
        self.column, self.rng = column, rng

    def inputs(self, heads=(2, 2), tokens=(QUERIES, KEYS), head_dim=64):
        shapes = ((heads[0], tokens[0]), (heads[1], tokens[1]), (heads[1], tokens[1]))
        return [self.rng.standard_normal((2, *shape, head_dim)) for shape in shapes]

    def check(self, dtype=np.float32, layout="HND", arranged=lambda x: x, sizes=None, **options):
        q, k, v = self.inputs(**sizes or {})
        arrays = (arranged(self.column.array(x, dtype, layout)) for x in (q, k, v))
        answer = self.column.attend(*arrays, layout=layout, **options)
        known = {name: options[name] for name in ("is_causal", "scale") if name in options}
        expected = exact.attention(q, k, v, **known)
        o, lse = answer if options.get("return_lse") else (answer, None)
        if o.dtype == np.uint16:
            o = o.view(bfloat16)
        assert o.dtype == dtype
        self.close(o.swapaxes(1, 2) if layout == "NHD" else o, expected[0])
        if lse is not None:
            self.close(lse, expected[1])
        return o

    @staticmethod
    def close(x, expected):
        scale = abs(expected).max(initial=1e-9)
        np.testing.assert_allclose(x.astype(np.float64), expected, rtol=0, atol=TOLERANCE * scale)


def masked(feature):
    feature.check(is_causal=True)


def shared_heads(feature):
    for heads in ((4, 2), (4, 1)):
        feature.check(sizes={"heads": heads})


def lengths(feature):
    for tokens in ((20, 40), (40, 20), (20, 0), (1, 130)):
        feature.check(sizes={"tokens": tokens})


def log_sum_exp(feature):
    feature.check(return_lse=True)


def layouts(feature):
    for layout in ("HND", "NHD"):
        feature.check(layout=layout)


def floats(feature):
    for dtype in (np.float32, np.float16):
        feature.check(dtype=dtype)


def brain_floats(feature):
    feature.check(dtype=bfloat16)


def strides(feature):
    feature.check(arranged=lambda x: np.repeat(x, 2, axis=3)[..., ::2])
    feature.check(arranged=lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1])


def scale_and_output(feature):
    out = np.zeros((2, 2, QUERIES, 64), np.float32)
    assert feature.check(scale=0.5, out=out) is out


def quantized_before(feature):
    q, k, v = feature.inputs()
    arrays = [feature.column.array(x, np.float32, "HND") for x in (q, k, v)]
    feature.close(feature.column.attend_quantized(*arrays), exact.attention(q, k, v)[0])


def different_lengths(feature):
    q, k, v = feature.inputs()
    arrays = [feature.column.array(x, np.float32, "HND") for x in (q, k, v)]
    o = feature.column.attend_of_lengths(*arrays, [KEYS, 7])
    feature.close(o[:1], exact.attention(q[:1], k[:1], v[:1])[0])
    feature.close(o[1:], exact.attention(q[1:], k[1:, :, :7], v[1:, :, :7])[0])


def pages(feature):
    q, k, v = feature.inputs()
    arrays = [feature.column.array(x, np.float32, "HND") for x in (q, k, v)]
    feature.close(feature.column.attend_in_pages(*arrays), exact.attention(q, k, v)[0])


def finite(feature):
    feature.check(check_finite=True)
    q, k, v = (feature.column.array(x, np.float32, "HND") for x in feature.inputs())
    v[0, 0, 0, 0] = np.nan
    with pytest.raises(ArgumentError, match="without NaN"):
        feature.column.attend(q, k, v, check_finite=True)


FEATURES = {
    "causal mask, aligned at the last query and key": masked,
    "heads of K and V shared by query heads": shared_heads,
    "more keys than queries, or fewer; none": lengths,
    "log-sum-exp, `return_lse=True`": log_sum_exp,
    'layouts `"HND"` and `"NHD"`': layouts,
    "float32, float16": floats,
    "bfloat16": brain_floats,
    "any strides": strides,
    "`scale=`, `out=`": scale_and_output,
    "operands quantized before": quantized_before,
    "sequences of different lengths": different_lengths,
    "pages": pages,
    "`check_finite=True`": finite,
}
HEAD_DIM = "`head_dim`"
SIZES = {"×8 to 512": {*range(8, 513, 8)}, "×16 to 256": {*range(16, 257, 16)}}


@pytest.fixture(params=range(len(COLUMNS)), ids=lambda i: f"column {i + 1}")
def column(request, monkeypatch):
    if COLUMNS[request.param].on_gpu:
        SimulatedGPU(monkeypatch)
    return request.param


def test_rows_of_the_table_are_known():
    assert set(features()) == {*FEATURES, HEAD_DIM, "CUDA graphs"}


@pytest.mark.parametrize("name", FEATURES)
def test_feature_is_as_the_table_says(column, rng, name):
    cell = features()[name][column]
    assert cell in (YES, NO)
    refused = pytest.raises((ArgumentError, UnsupportedError))
    with nullcontext() if cell == YES else refused:
        FEATURES[name](Feature(COLUMNS[column], rng))


def test_head_dims_are_as_the_table_says(column, rng):
    allowed = SIZES[features()[HEAD_DIM][column]]
    for head_dim in (8, 12, 40, 64, 80, 96, 128, 192, 256, 264, 512, 520):
        refused = pytest.raises((ArgumentError, UnsupportedError))
        with nullcontext() if head_dim in allowed else refused:
            Feature(COLUMNS[column], rng).check(sizes={"head_dim": head_dim})


def test_schemes_are_listed_where_they_have_kernels():
    rows = [
        line.strip("|").split("|") for line in support(Figures(Record("0", "", {}))).splitlines()
    ]
    cells = {name.strip(): row[1:] for row in rows[2:] for name in row[0].split(",")}
    for name, scheme in PRESETS.items():
        for arch, cell in zip(TARGETS, cells[f"`{name}`"], strict=True):
            refused = pytest.raises(UnsupportedError) if cell.strip() == NO else nullcontext()
            with refused:
                check_supported(scheme, TARGETS[arch])


def test_only_what_the_record_has_measured_has_run():
    assert "●" not in support(Figures(Record("0", "NVIDIA Test", {})))
