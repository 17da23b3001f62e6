"""Every preset against its formula, written out number by number from the paper's text.

The formulas share no code with `cuattn.reference`: `preset_codes`, `preset_softmax` and
`preset_rows`.
"""

import numpy as np
import pytest
from preset_codes import HEAD_DIM, signs
from preset_rows import ROWS

from cuattn.presets import PRESETS
from cuattn.reference import emulate, rotation

SCALE = 0.6


@pytest.mark.parametrize("scheme", ROWS, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("is_causal", [False, True])
# Blocks: less than one; several with a tail; of queries, too; queries that outnumber keys.
@pytest.mark.parametrize(("seqlen_q", "seqlen_kv"), [(5, 40), (3, 300), (150, 170), (6, 4)])
def test_preset_computes_its_formula(scheme, is_causal, seqlen_q, seqlen_kv):
    rng = np.random.default_rng(seqlen_kv)
    q = 3 * rng.standard_normal((1, 2, seqlen_q, HEAD_DIM)).astype(np.float32)
    k = rng.standard_normal((1, 1, seqlen_kv, HEAD_DIM)).astype(np.float32) + np.float32(0.7)
    # Tokens of V of very different sizes, so that the place of its scales matters.
    v = rng.standard_normal((1, 1, seqlen_kv, HEAD_DIM)) * rng.uniform(0.1, 4, (seqlen_kv, 1)) + 0.3
    v = v.astype(np.float32)
    o, lse = emulate.attention(q, k, v, scheme=scheme, scale=SCALE, is_causal=is_causal)
    for h in range(2):
        # Of many rows, some on both sides of the end of a block.
        for i in sorted({*range(min(seqlen_q, 6)), *range(126, seqlen_q, 5)}):
            last = i + seqlen_kv - seqlen_q if is_causal else seqlen_kv - 1
            keys = list(range(last + 1))
            if not keys:
                assert not o[0, h, i].any()
                assert lse[0, h, i] == -np.inf
                continue
            expected_o, expected_lse = ROWS[scheme](q[0, h], i, k[0, 0], v[0, 0], keys, SCALE)
            np.testing.assert_allclose(o[0, h, i], expected_o, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(lse[0, h, i], expected_lse, rtol=1e-12, atol=1e-12)


def test_every_preset_has_a_formula_here():
    assert set(PRESETS.values()) <= set(ROWS)


def test_signs_of_rotations_are_those_of_the_formula():
    np.testing.assert_array_equal(rotation.signs(256), signs(256))
    # Signs with an even number of -1 would only permute the columns of Hadamard's matrix of 4.
    assert np.prod(signs()) == -1
