"""`merge_states` in host memory, its errors, and attention to parts against that to all keys."""

import numpy as np
import pytest
from helpers.arrays_in_memory import as_float32
from helpers.foreign import Foreign
from helpers.merge_cases import stored_states
from hypothesis import given
from hypothesis import strategies as st

import cuattn
from cuattn.errors import ArgumentError
from cuattn.reference import exact
from cuattn.reference.merging import merge_states

SHAPE = (2, 3, 7, 24)


def parts(rng, dtype="float16", n=3, **options):
    o, lse = stored_states(rng, dtype, n, SHAPE, **options)
    return list(o), list(lse)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_result_is_the_definition_rounded_once(rng, dtype, n):
    o, lse = parts(rng, dtype, n)
    want, want_lse = merge_states(o, lse)
    for given_o, given_lse in ((o, lse), (tuple(o), np.stack(lse)), (np.stack(o), lse)):
        got, got_lse = cuattn.merge_states(given_o, given_lse)
        assert (got.dtype, got_lse.dtype) == (dtype, np.float32)
        np.testing.assert_array_equal(got, want.astype(dtype))
        np.testing.assert_array_equal(got_lse, want_lse.astype(np.float32))


def test_bfloat16(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    o, lse = parts(rng, "bfloat16")
    got, _ = cuattn.merge_states([x.view(ml_dtypes.bfloat16) for x in o], lse)
    want, _ = merge_states([as_float32(x, "bfloat16") for x in o], lse)
    np.testing.assert_array_equal(got, want.astype(ml_dtypes.bfloat16))


def test_tokens_before_heads(rng):
    o, lse = parts(rng)
    want, want_lse = cuattn.merge_states(o, lse)
    for nhd in ([x.swapaxes(1, 2) for x in o], np.stack(o).swapaxes(2, 3)):
        got, got_lse = cuattn.merge_states(nhd, lse, layout="NHD")
        np.testing.assert_array_equal(got.swapaxes(1, 2), want)
        np.testing.assert_array_equal(got_lse, want_lse)


def test_output_is_written_and_returned(rng):
    o, lse = parts(rng)
    out = np.full((2, 3, 7, 48), np.nan, np.float16)[..., ::2]
    got, _ = cuattn.merge_states(o, lse, out=out)
    assert got is out
    np.testing.assert_array_equal(out, cuattn.merge_states(o, lse)[0])


def test_arrays_of_other_libraries(rng):
    o, lse = parts(rng)
    got, _ = cuattn.merge_states([Foreign(x) for x in o], [Foreign(x) for x in lse])
    np.testing.assert_array_equal(got, cuattn.merge_states(o, lse)[0])


@pytest.mark.needs("torch")
def test_tensors_of_pytorch(rng):
    import torch

    o, lse = parts(rng, empty=0)
    want, want_lse = cuattn.merge_states(o, lse)
    given_o, given_lse = ([torch.from_numpy(x) for x in some] for some in (o, lse))
    got, got_lse = cuattn.merge_states(given_o, torch.stack(given_lse))
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float16
    np.testing.assert_array_equal(got.numpy(), want)
    np.testing.assert_array_equal(got_lse.numpy(), want_lse)


def test_rows_without_keys():
    o, lse = np.full((2, 1, 1, 2, 8), np.nan, np.float32), np.full((2, 1, 1, 2), -np.inf)
    o[0, ..., 1, :], lse[0, ..., 1] = 3, 5
    got, got_lse = cuattn.merge_states(o, lse.astype(np.float32))
    np.testing.assert_array_equal(got, np.repeat([[[[0.0], [3.0]]]], 8, axis=3))
    np.testing.assert_array_equal(got_lse, [[[-np.inf, 5]]])


@given(data=st.data())
def test_any_partition_of_the_keys_in_any_order(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    keys = data.draw(st.integers(1, 30))
    n = data.draw(st.integers(1, 6))
    of_part = rng.integers(0, n, keys)  # some parts may be empty
    factor = data.draw(st.sampled_from([1.0, 40.0]))  # logits that are far apart
    q, k, v = (rng.standard_normal((1, 2, rows, 8), np.float32) for rows in (3, keys, keys))
    q *= np.float32(factor)
    some = [
        exact.attention(q, k[:, :, of_part == part], v[:, :, of_part == part])
        for part in rng.permutation(n)
    ]
    o, lse = ([x.astype(np.float32) for x in of_all] for of_all in zip(*some, strict=True))
    got, got_lse = cuattn.merge_states(o, lse)
    want, want_lse = exact.attention(q, k, v)
    largest = max(1, float(np.abs(want_lse).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-20 * largest)
    np.testing.assert_allclose(got_lse, want_lse, rtol=2.0**-22, atol=2.0**-20)


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_results_of_attention(rng, layout):
    q, k, v = (rng.standard_normal((1, 2, rows, 16), np.float32) for rows in (5, 300, 300))
    options = {"scheme": "fp16", "return_lse": True, "layout": layout}

    def attend(keys):
        arrays = (q, k[:, :, keys], v[:, :, keys])
        return cuattn.attention(
            *(x.swapaxes(1, 2) if layout == "NHD" else x for x in arrays), **options
        )

    some = [attend(keys) for keys in (slice(0, 128), slice(128, 128), slice(128, 300))]
    o, lse = zip(*some, strict=True)
    got, got_lse = cuattn.merge_states(o, lse, layout=layout)
    want, want_lse = attend(slice(None))
    np.testing.assert_allclose(got, want, atol=2e-3)
    np.testing.assert_allclose(got_lse, want_lse, atol=2e-3)


WRONG = [
    ("o", "a sequence of at least one array", {"o": []}),
    ("o", "an array of CuPy", {"o": 3}),
    (r"o\[0\]", "an array of CuPy", {"o": [[1.0]]}),
    ("lse", "a sequence of at least one array", {"lse": ()}),
    ("lse", "of 3 parts, as o is", {"lse": lambda o, lse: lse[:2]}),
    (r"o\.shape", r"\[parts, batch, heads, seqlen, head_dim\]", {"o": lambda o, lse: o[0]}),
    (r"o\.shape", "at least one part|.*", {"o": lambda o, lse: np.stack(o)[:0]}),
    (r"lse\.shape", r"\[parts, batch, heads, seqlen\]", {"lse": lambda o, lse: lse[0]}),
    (r"o\[1\]\.shape", r"\[batch, heads", {"o": lambda o, lse: [o[0], o[1][0], o[2]]}),
    (
        r"o\[2\]\.shape",
        r"\(2, 3, 7, 24\), the shape",
        {"o": lambda o, lse: [*o[:2], o[2][:, :, 1:]]},
    ),
    (r"o\[1\]\.dtype", "float16, the dtype", {"o": lambda o, lse: [o[0], o[1].astype("f4"), o[2]]}),
    (r"o\[0\]\.dtype", "one of", {"o": lambda o, lse: [x.astype("f8") for x in o]}),
    (r"o\.dtype", "one of", {"o": lambda o, lse: np.stack(o).astype("f8")}),
    (
        r"lse\[1\]\.shape",
        r"\(2, 3, 7\)",
        {"lse": lambda o, lse: [lse[0], lse[1].swapaxes(1, 2), lse[2]]},
    ),
    (r"lse\[0\]\.dtype", "float32", {"lse": lambda o, lse: [x.astype("f2") for x in lse]}),
    ("layout", "one of", {"layout": "nhd"}),
    ("head_dim", "a multiple of 8", {"o": lambda o, lse: [x[..., :20] for x in o]}),
    (r"out\.shape", r"\(2, 3, 7, 24\)", {"out": np.zeros((2, 3, 7, 8), np.float16)}),
    (r"out\.dtype", "float16", {"out": np.zeros(SHAPE, np.float32)}),
    ("out", "in memory apart", {"out": lambda o, lse: o[2]}),
    ("out", "writable", {"out": np.broadcast_to(np.float16(0), SHAPE).copy()}),
    ("stream", "None", {"stream": 0}),
]


@pytest.mark.parametrize(("name", "expected", "changes"), WRONG, ids=[w[0] for w in WRONG])
def test_what_is_wrong_is_named(rng, name, expected, changes):
    o, lse = parts(rng)
    arguments = {"o": o, "lse": lse}
    for key, change in changes.items():
        arguments[key] = change(o, lse) if callable(change) else change
    if expected == "writable":
        arguments["out"].flags.writeable = False
    with pytest.raises(ArgumentError, match=rf"^{name} must be {expected}"):
        cuattn.merge_states(arguments.pop("o"), arguments.pop("lse"), **arguments)


def test_wide_heads_are_refused(rng):
    o, lse = np.zeros((1, 1, 1, 1, 1032), np.float16), np.zeros((1, 1, 1, 1), np.float32)
    with pytest.raises(ArgumentError, match=r"^head_dim must be a multiple of 8 from 8 to 1024"):
        cuattn.merge_states(o, lse)


def test_more_rows_than_are_counted_are_refused():
    o = np.broadcast_to(np.float16(0), (1, 2**16, 2**15, 1, 8))
    lse = np.broadcast_to(np.float32(0), (1, 2**16, 2**15, 1))
    with pytest.raises(ArgumentError, match=r"^o\[0\]\.shape must be such that batch \* heads"):
        cuattn.merge_states(o, lse)


def test_inputs_stay_as_they_are(rng):
    o, lse = parts(rng)
    before = [x.tobytes() for x in (*o, *lse)]
    cuattn.merge_states(o, lse)
    assert [x.tobytes() for x in (*o, *lse)] == before


def test_unknown_keyword_says_which_was_meant(rng):
    with pytest.raises(ArgumentError, match="no argument 'tensor_layout'; expected 'layout'"):
        cuattn.merge_states(*parts(rng), tensor_layout="HND")
