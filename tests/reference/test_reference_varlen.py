"""The reference of sequences of different lengths."""

import numpy as np
import pytest
from helpers.varlen_cases import LENGTHS_K, LENGTHS_Q, bounds, packed

from cuattn.errors import ArgumentError
from cuattn.reference import exact, varlen

SINKS = np.array([0.5, -1.0, 2.0, -np.inf])


def test_each_sequence_is_attended_by_itself(rng):
    q, k, v = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=8, beyond=3)
    at = bounds(LENGTHS_Q), bounds(LENGTHS_K)
    cu = {"cu_seqlens_q": at[0], "cu_seqlens_k": at[1]}
    o, lse = varlen.attention(q, k, v, **cu, sinks=SINKS, is_causal=True)
    for b in range(len(LENGTHS_Q)):
        rows, keys = (slice(*map(int, x[b : b + 2])) for x in at)
        one = (x[s].swapaxes(0, 1)[None] for x, s in ((q, rows), (k, keys), (v, keys)))
        expected, of_rows = exact.attention(*one, sinks=SINKS, is_causal=True)
        np.testing.assert_array_equal(o[rows], expected[0].swapaxes(0, 1))
        np.testing.assert_array_equal(lse[:, rows], of_rows[0])
    assert not o[at[0][-1] :].any()
    assert np.isneginf(lse[:, at[0][-1] :]).all()


def test_one_sequence_is_a_plain_call_with_fewer_keys(rng):
    q, k, v = packed(rng, (30,), (50,), head_dim=8)
    cu = {"cu_seqlens_q": bounds((30,)), "cu_seqlens_k": bounds((50,))}
    o, _ = varlen.attention(q, k, v, **cu, seqused_k=[20])
    one = (x.swapaxes(0, 1)[None] for x in (q, k[:20], v[:20]))
    np.testing.assert_array_equal(o, exact.attention(*one)[0][0].swapaxes(0, 1))


def test_sequences_end_at_limits():
    found = list(varlen.sequences([0, 5, 9], [0, 4, 10], (9, 10), max_seqlens=(4, 5)))
    assert found == [(0, slice(0, 4), slice(0, 4)), (1, slice(5, 9), slice(4, 9))]
    assert [x.shape for x in found] == [(4, 4), (4, 5)]


@pytest.mark.parametrize(
    ("q", "k", "used", "name"),
    [
        ([0, 5, 4], [0, 4, 10], None, "cu_seqlens_q"),
        ([0, 5, 9], [0, 4, 11], None, "cu_seqlens_k"),
        ([0, 5, 9], [0, 10], None, "cu_seqlens_k"),
        ([], [0], None, "cu_seqlens_q"),
        ([0, 5, 9], [0, 4, 10], [1], "seqused_k"),
        ([0, 5, 9], [0, 4, 10], [-1, 2], "seqused_k"),
    ],
)
def test_lengths_that_make_no_sense_are_named(q, k, used, name):
    with pytest.raises(ArgumentError, match=name):
        list(varlen.sequences(q, k, (9, 10), seqused_k=used))
