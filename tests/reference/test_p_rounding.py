"""Errors of rows, counts of codes, and what the rounding of P does, against plain formulas."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS, resolve
from cuattn.reference.by_row import RowErrors
from cuattn.reference.code_counts import largest_p, operand_counts, p_numbers
from cuattn.reference.distributions import make
from cuattn.reference.emulate import emulate
from cuattn.reference.metrics import relative_l1
from cuattn.reference.p_rounding import COUNTS, RUNS, look_at_p
from cuattn.reference.quantize import Quantized, operands

SIZES = {
    "batch": 2,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "seqlen_q": 150,
    "seqlen_kv": 300,
    "head_dim": 32,
}
QKV = make("peaked", **SIZES, seed=5)


def test_errors_of_rows_and_heads_are_relative_l1():
    rng = np.random.default_rng(0)
    o, reference = rng.standard_normal((2, 2, 3, 10, 4))
    found = RowErrors.of(o, reference)
    assert found.rows()[1, 2, 7] == pytest.approx(relative_l1(o[1, 2, 7], reference[1, 2, 7]))
    assert found.heads()[1, 0] == pytest.approx(relative_l1(o[1, 0], reference[1, 0]))
    halves = found.steps(2)
    assert halves.shape == (2, 3, 2)
    assert halves[0, 1, 1] == pytest.approx(relative_l1(o[0, 1, 5:], reference[0, 1, 5:]))
    np.testing.assert_allclose(found.steps(99), found.rows())


def test_rows_without_anything_have_no_error():
    zeros = np.zeros((1, 2, 3, 4))
    found = RowErrors.of(zeros, zeros)
    assert not found.rows().any()
    assert not found.heads().any()
    assert RowErrors.of(zeros[:, :, :0], zeros[:, :, :0]).steps(5).shape == (1, 2, 0)
    assert np.isinf(RowErrors.of(zeros + 1, zeros).rows()).all()
    with pytest.raises(ArgumentError, match=r"o\.shape"):
        RowErrors.of(zeros, zeros[..., :1])


@pytest.mark.parametrize(("scheme", "size"), [("int8", 255), ("int4", 15), ("fp8", 253)])
def test_every_code_of_an_operand_is_counted(scheme, size):
    q = operands(*QKV, scheme).q
    counts = operand_counts(q, resolve(scheme).qk)
    assert counts.shape == (size,)
    assert counts.sum() == q.codes.size
    assert counts[size // 2] == (q.codes == 0).sum()
    # The outermost codes are those of the largest elements.
    assert counts[-1] == (q.codes == q.codes.max()).sum() > 0
    assert counts[: size // 2].sum() == (q.codes < 0).sum()


@pytest.mark.parametrize("scheme", PRESETS)
def test_numbers_of_p_are_in_order_from_zero_to_the_largest(scheme):
    scheme = resolve(scheme)
    for compute in ("float16", "bfloat16"):
        seen = []
        ops = operands(*QKV, scheme, compute=compute)
        emulate(ops, scheme, observe=lambda b, h, rows, keys, p: seen.append(p.codes))  # noqa: B023
        codes = np.unique(np.concatenate([x.ravel() for x in seen]))
        numbers = p_numbers(codes, scheme, ops.compute)
        assert (np.diff(numbers) > 0).all()
        assert numbers[-1] <= largest_p(scheme, ops.compute)
        assert p_numbers(np.array([0.0, np.nan]), scheme, ops.compute).tolist() == [0, 0]


def test_who_looks_on_changes_nothing():
    ops = operands(*QKV, "int8")
    seen = []
    observed = emulate(ops, "int8", is_causal=True, observe=lambda *block: seen.append(block[:4]))
    for a, b in zip(observed, emulate(ops, "int8", is_causal=True), strict=True):
        np.testing.assert_array_equal(a, b)
    assert seen[:3] == [(0, 0, range(150), range(i, min(i + 128, 300))) for i in (128, 256, 0)]
    assert len(seen) == 3 * 8


def test_some_rows_are_as_among_all():
    ops = operands(*QKV, "int8-fast")
    o, lse = emulate(ops, "int8-fast", is_causal=True)
    rows = [range(10, 20), range(100, 150)]
    some, some_lse = emulate(ops, "int8-fast", is_causal=True, row_blocks=rows)
    for block in rows:
        at = np.s_[:, :, block.start : block.stop]
        np.testing.assert_allclose(some[at], o[at], rtol=1e-12)
        np.testing.assert_allclose(some_lse[at], lse[at], rtol=1e-12)
    assert not some[:, :, 20:100].any()
    assert (some_lse[:, :, 20:100] == -np.inf).all()


def test_zeros_of_p_are_those_of_the_formula():
    """A scheme against the maximum of the row, in one block of keys: P is round(127 p / max p)."""
    q, k, v = (x[:, :, :100] for x in QKV)
    ops = operands(q, k, v, "int-flash")
    found = look_at_p(ops, "int-flash", [range(100)])
    s = ops.q.dequantize() @ np.repeat(ops.k.dequantize(), 2, axis=1).swapaxes(2, 3) / np.sqrt(32)
    p = np.exp(s - s.max(axis=3, keepdims=True))
    codes = np.floor(127 * p + 0.5).astype(int)
    np.testing.assert_array_equal(found.counts, np.bincount(codes.ravel(), minlength=128))
    assert found.width == 1
    zero = codes == 0
    assert found.zero_share == pytest.approx(zero.mean())
    lost = (p * zero).sum(axis=3) / p.sum(axis=3)
    assert found.lost == pytest.approx(lost.mean())
    assert found.seen.shape == (RUNS, RUNS)
    # 100 rows and keys are 64 runs; those of row and key i are numbered i * 64 // 100.
    runs = np.arange(100) * RUNS // 100
    expected = np.zeros((RUNS, RUNS))
    np.add.at(expected, (runs[:, None], runs), zero.sum(axis=(0, 1)))
    np.testing.assert_array_equal(found.zeros, expected)


@pytest.mark.parametrize("scheme", PRESETS)
def test_all_that_a_row_sees_is_counted_once(scheme):
    ops = operands(*QKV, scheme)
    rows = [range(32), range(128, 150)]
    found = look_at_p(ops, scheme, rows, is_causal=True)
    pairs = 8 * sum(i + 151 for block in rows for i in block)
    assert found.counts.sum() == found.seen.sum() == pairs
    assert found.counts.size <= COUNTS
    assert 0 <= found.zero_share < 1
    # What rounds to zero is less than what the finest step would be, for each key.
    assert 0 <= found.lost < 0.5
    assert found.counts[0] >= found.zeros.sum()


def test_of_no_rows_nothing_is_counted():
    found = look_at_p(operands(*QKV, "int8"), "int8", [])
    assert (found.counts.sum(), found.seen.size, found.zero_share, found.lost) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp16"])
def test_nan_counts_as_zero_and_harms_nothing(scheme):
    q, k, v = (x.copy() for x in QKV)
    k[0, 0, 3, 3] = np.nan
    found = look_at_p(operands(q, k, v, scheme), scheme, [range(150)])
    assert np.isfinite(found.lost)
    assert found.counts.sum() == 8 * 150 * 300


def test_codes_of_zeros_are_counted():
    x = np.zeros((1, 1, 4, 32), np.float32)
    q = operands(x, x, x, "int8").q
    assert isinstance(q, Quantized)
    assert operand_counts(q, "int8")[127] == 4 * 32
