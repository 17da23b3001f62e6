"""Every preset against its formula, written out here number by number from the paper's text.

Nothing below shares code with `cuattn.reference` but the inputs. Each function attends one query
row, in the order of the online algorithm, natural exponentials where the package uses base 2.
"""

import math
from functools import partial

import numpy as np
import pytest

from cuattn.reference import emulate
from cuattn.scheme import PRESETS, Scheme

HEAD_DIM = 4


def int8(values):
    """Symmetric 8-bit codes of some float32 numbers, and their common scale."""
    a = max([np.float32(2.0**-100), *(abs(np.float32(x)) for x in values)])
    factor = np.float32(127) / a
    return [round(float(np.float32(x) * factor)) for x in values], float(a / np.float32(127))


# Magnitudes of e4m3 in the order of their bits, so that the even ones have an even fraction.
E4M3 = [f * 2.0**-9 for f in range(8)]
E4M3 += [(8 + f) * 2.0 ** (e - 10) for e in range(1, 16) for f in range(8)][:-1]


def nearest_e4m3(x):
    bits = min(range(127), key=lambda i: (abs(E4M3[i] - abs(x)), i % 2))
    return math.copysign(E4M3[bits], x)


def fp8(values):
    """The same in e4m3."""
    a = max([np.float32(2.0**-100), *(abs(np.float32(x)) for x in values)])
    factor = np.float32(448) / a
    return [nearest_e4m3(float(np.float32(x) * factor)) for x in values], float(a / np.float32(448))


def fp8_tensor(x):
    flat, scale = fp8(x.ravel())
    return [flat[i : i + HEAD_DIM] for i in range(0, len(flat), HEAD_DIM)], scale


def int8_tokens(x):
    pairs = [int8(row) for row in x]
    return [codes for codes, _ in pairs], [scale for _, scale in pairs]


def int8_groups(x, size):
    """One scale for every `size` consecutive tokens."""
    codes, scales = [], []
    for start in range(0, len(x), size):
        group = x[start : start + size]
        flat, scale = int8(group.ravel())
        codes += [flat[i : i + HEAD_DIM] for i in range(0, len(flat), HEAD_DIM)]
        scales += [scale] * len(group)
    return codes, scales


def sample_mean(x):
    count = min(512, len(x))
    tokens = [i * len(x) // count for i in range(count)]
    return np.array(
        [np.float32(math.fsum(float(x[t, d]) for t in tokens) / count) for d in range(HEAD_DIM)]
    )


def mean(x):
    return np.array([np.float32(math.fsum(map(float, x[:, d])) / len(x)) for d in range(HEAD_DIM)])


def dot(x, y):
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def int_logits(q, k8, k_scale, keys, scale):
    q8, q_scale = int8(q)
    return {j: scale * dot(q8, k8[j]) * q_scale * k_scale[j] for j in keys}


def blocks(logits, size, unit=None):
    """Visible keys, block by block, each with the running maximum after it.

    With a unit, it stands 0.746 of it higher after the first block, and moves by multiples of it.
    """
    running = -math.inf
    for start in range(0, max(logits) + 1, size):
        block = [j for j in range(start, start + size) if j in logits]
        higher = max(running, *(logits[j] for j in block))
        if unit and start:
            higher = running + unit * math.ceil((higher - running) / unit)
        elif unit:
            higher += math.log2(255 / 152) * unit
        running = higher
        yield block, running


def online(logits, size, weight_of, value, unit=None):
    """FlashAttention's recurrence, P replaced by `weight_of(p, j)` in the product with V only."""
    top, total, o = -math.inf, 0.0, [0.0] * HEAD_DIM
    for block, running in blocks(logits, size, unit):
        shrink = math.exp(top - running)
        total *= shrink
        o = [x * shrink for x in o]
        top = running
        for j in block:
            p = math.exp(logits[j] - running)
            total += p
            o = [x + weight_of(p) * value[j][d] for d, x in enumerate(o)]
    return [x / total for x in o], top + math.log(total)


def block_local(logits, v8, v_scale):
    """P in 255 steps of the largest probability times V scale inside each block of 128 keys."""
    total, o, top = 0.0, [0.0] * HEAD_DIM, max(logits.values())
    for block, _ in blocks(logits, 128):
        x = {j: logits[j] + math.log(v_scale[j]) for j in block}
        block_max = max(x.values())
        codes = {j: round(255 * math.exp(x[j] - block_max)) for j in block}
        for d in range(HEAD_DIM):
            exact = sum(codes[j] * v8[j][d] for j in block)
            o[d] += exact * math.exp(block_max - top) / 255
        total += math.fsum(math.exp(logits[j] - top) for j in block)
    return [x / total for x in o], top + math.log(total)


def row_int8(q, k, v, keys, scale):
    vector = sample_mean(k)
    k8, k_scale = int8_tokens(k - vector)
    logits = int_logits(q, k8, k_scale, keys, scale)
    v_mean = sample_mean(v)
    o, lse = block_local(logits, *int8_tokens(v - v_mean))
    return [x + float(mean) for x, mean in zip(o, v_mean, strict=True)], lse + scale * dot(
        q, vector
    )


def row_int8_block(q, k, v, keys, scale):
    vector, v_mean = sample_mean(k), mean(v)
    k8, k_scale = int8_groups(k - vector, 128)
    logits = int_logits(q, k8, k_scale, keys, scale)
    channels = [int8(column) for column in (v - v_mean).T]
    v8 = list(zip(*(codes for codes, _ in channels), strict=True))
    o, lse = block_local(logits, v8, [1.0] * len(v8))
    o = [x * channels[d][1] + float(v_mean[d]) for d, x in enumerate(o)]
    return o, lse + scale * dot(q, vector)


def row_int8_fast(q, k, v, keys, scale):
    """As int8-block with P in 255 steps of the running maximum, moved by powers of two."""
    return running(q, k, v, keys, scale, int8, lambda p: round(255 * p) / 255, math.log(2))


def row_int8_fp8(q, k, v, keys, scale):
    """SageAttention2, arXiv 2411.10958: P times 448 and V per channel, both e4m3."""
    return running(q, k, v, keys, scale, fp8, lambda p: nearest_e4m3(448 * p) / 448)


def running(q, k, v, keys, scale, code_of, weight_of, unit=None):
    vector, v_mean = sample_mean(k), mean(v)
    k8, k_scale = int8_groups(k - vector, 128)
    logits = int_logits(q, k8, k_scale, keys, scale)
    channels = [code_of(column) for column in (v - v_mean).T]
    v8 = list(zip(*(codes for codes, _ in channels), strict=True))
    o, lse = online(logits, 128, weight_of, v8, unit)
    o = [x * channels[d][1] + float(v_mean[d]) for d, x in enumerate(o)]
    return o, lse + scale * dot(q, vector)


def row_fp8(whole_q, q, k, v, keys, scale):
    """FlashAttention-3, arXiv 2407.08608, section 3.3: one scale for each of Q, K and V."""
    codes, q_scale = fp8_tensor(whole_q)
    q8 = codes[next(i for i, row in enumerate(whole_q) if (row == q).all())]
    (k8, k_scale), (v8, v_scale) = fp8_tensor(k), fp8_tensor(v)
    logits = {j: scale * q_scale * k_scale * dot(q8, k8[j]) for j in keys}
    o, lse = online(logits, 128, lambda p: nearest_e4m3(448 * p) / 448, v8)
    return [x * v_scale for x in o], lse


def row_int8_fp16(q, k, v, keys, scale):
    vector = sample_mean(k)
    k8, k_scale = int8_tokens(k - vector)
    logits = int_logits(q, k8, k_scale, keys, scale)
    o, lse = online(logits, 64, lambda p: float(np.float16(p)), v.astype(np.float16).tolist())
    return o, lse + scale * dot(q, vector)


def row_int_flash(q, k, v, keys, scale):
    """INT-FlashAttention, arXiv 2409.16997, Algorithm 1: INT8 for Q, K, P and V."""
    logits = int_logits(q, *int8_tokens(k), keys, scale)
    flat, v_scale = int8(v.ravel())
    value = [[v_scale * c for c in flat[i : i + HEAD_DIM]] for i in range(0, len(flat), HEAD_DIM)]
    return online(logits, 128, lambda p: math.floor(127 * p + 0.5) / 127, value)


def row_int_flash_half(q, k, v, keys, scale):
    """Its half-INT8 variant: P and V in float16."""
    logits = int_logits(q, *int8_tokens(k), keys, scale)
    return online(logits, 64, lambda p: float(np.float16(p)), v.astype(np.float16).tolist())


def row_fp16(q, k, v, keys, scale):
    q, k, v = (x.astype(np.float16) for x in (q, k, v))
    logits = {j: scale * dot(q, k[j]) for j in keys}
    return online(logits, 64, lambda p: float(np.float16(p)), v.tolist())


def row_running_255(q, k, v, keys, scale):
    """P in 255 steps of the running maximum, V per channel."""
    logits = int_logits(q, *int8_tokens(k), keys, scale)
    channels = [int8(column) for column in v.T]
    value = [[channels[d][0][j] * channels[d][1] for d in range(HEAD_DIM)] for j in range(len(v))]
    return online(logits, 128, lambda p: round(255 * p) / 255, value)


RUNNING = Scheme("running", v_scope="channel", p_range="row", smooth_k="none")

ROWS = {
    PRESETS["int8"]: row_int8,
    PRESETS["int8-block"]: row_int8_block,
    PRESETS["int8-fast"]: row_int8_fast,
    PRESETS["int8-fp8"]: row_int8_fp8,
    PRESETS["int8-fp16"]: row_int8_fp16,
    PRESETS["int-flash"]: row_int_flash,
    PRESETS["int-flash-half"]: row_int_flash_half,
    PRESETS["fp8"]: row_fp8,
    PRESETS["fp16"]: row_fp16,
    RUNNING: row_running_255,
}


@pytest.mark.parametrize("scheme", ROWS, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("is_causal", [False, True])
# Blocks: less than one; several with a tail; queries that outnumber keys.
@pytest.mark.parametrize(("seqlen_q", "seqlen_kv"), [(5, 40), (3, 300), (6, 4)])
def test_preset_computes_its_formula(scheme, is_causal, seqlen_q, seqlen_kv):
    rng = np.random.default_rng(seqlen_kv)
    q = 3 * rng.standard_normal((1, 2, seqlen_q, HEAD_DIM)).astype(np.float32)
    k = rng.standard_normal((1, 1, seqlen_kv, HEAD_DIM)).astype(np.float32) + np.float32(0.7)
    # Tokens of V of very different sizes, so that the place of its scales matters.
    v = rng.standard_normal((1, 1, seqlen_kv, HEAD_DIM)) * rng.uniform(0.1, 4, (seqlen_kv, 1)) + 0.3
    v = v.astype(np.float32)
    scale = 0.6
    o, lse = emulate.attention(q, k, v, scheme=scheme, scale=scale, is_causal=is_causal)
    for h in range(2):
        for i in range(seqlen_q):
            last = i + seqlen_kv - seqlen_q if is_causal else seqlen_kv - 1
            keys = list(range(last + 1))
            if not keys:
                assert not o[0, h, i].any()
                assert lse[0, h, i] == -np.inf
                continue
            row = partial(ROWS[scheme], q[0, h]) if scheme.qk == "fp8" else ROWS[scheme]
            expected_o, expected_lse = row(q[0, h, i], k[0, 0], v[0, 0], keys, scale)
            np.testing.assert_allclose(o[0, h, i], expected_o, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(lse[0, h, i], expected_lse, rtol=1e-12, atol=1e-12)


def test_every_preset_has_a_formula_here():
    assert set(PRESETS.values()) <= set(ROWS)
