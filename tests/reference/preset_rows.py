"""One row of every preset, in the order of the online algorithm of its paper.

Natural exponentials where the package uses base 2. Each function attends row `i` of the head `q`
to `keys`, and returns O and the log-sum-exp.
"""

import math
from functools import partial

import numpy as np
from preset_codes import (
    HEAD_DIM,
    block,
    by_channel,
    by_token,
    fp8,
    int4,
    int8,
    lanes_and_sections,
    mean,
    robust_mean,
    rotated,
    rotated_back,
    sample_mean,
    thread_of_key,
    thread_of_row,
    token,
    whole,
)
from preset_softmax import (
    block_local,
    in_127_steps,
    in_255_steps,
    in_e4m3,
    in_half,
    in_twin_steps,
    online,
)

from cuattn.presets import PRESETS
from cuattn.scheme import Scheme


def dot(x, y):
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def logits_of(q, i, k, keys, scale, q_scope=token, k_scope=token, code_of=int8):
    """Logits of codes, of a Q and K from which everything is subtracted already."""
    (q8, q_scale), (k8, k_scale) = by_token(q, q_scope, code_of), by_token(k, k_scope, code_of)
    return {j: scale * dot(q8[i], k8[j]) * q_scale[i] * k_scale[j] for j in keys}


def as_it_is(x):
    return x


def logits_without_means(q, i, k, vector, keys, scale, *scopes, code_of, turned=as_it_is):
    """SageAttention2, arXiv 2411.10958, equation 5: the mean of 128 rows apart from the rest."""
    first = i - i % 128
    rows = q[first : first + 128]
    q_mean = mean(rows)
    q_rest, k_rest = turned(rows - q_mean), turned(k - vector)
    logits = logits_of(q_rest, i - first, k_rest, keys, scale, *scopes, code_of)
    rest = k.astype(np.float64) - vector
    return {j: logits[j] + scale * dot(q_mean, rest[j]) for j in keys}


def with_channels(logits, v, vector, code_of, attend):
    """O of V without `vector`, with a scale for each channel."""
    v8, scales = by_channel(v - vector, code_of)
    o, lse = attend(logits, v8)
    return [x * scales[d] + float(vector[d]) for d, x in enumerate(o)], lse


def one_range(logits, v8):
    return block_local(logits, v8, [1.0] * len(v8))


def running(weight_of, unit=None):
    return lambda logits, v8: online(logits, 128, weight_of, v8, unit)


def in_float16(logits, v):
    return online(logits, 64, in_half, v.astype(np.float16).tolist())


def values_of(v, scope, code_of):
    v8, scales = by_token(v, scope, code_of)
    return [[s * c for c in row] for s, row in zip(scales, v8, strict=True)]


NO_VECTOR = np.zeros(HEAD_DIM, np.float32)


def row_int8_sorted(q, i, k, v, keys, scale):
    """A scale of K, and one of V, for each section of a lane."""
    vector, v_mean = sample_mean(k), sample_mean(v)
    k_rest, v_rest = rotated(k - vector), v - v_mean
    scope = lanes_and_sections(k_rest, v_rest).__getitem__
    logits = logits_of(rotated(q), i, k_rest, keys, scale, token, scope)
    o, lse = block_local(logits, *by_token(v_rest, scope, int8))
    o = [x + float(m) for x, m in zip(o, v_mean, strict=True)]
    return o, lse + scale * dot(q[i], vector)


def row_int8_token(q, i, k, v, keys, scale, steps=255):
    vector, v_mean = sample_mean(k), sample_mean(v)
    logits = logits_of(q, i, k - vector, keys, scale)
    o, lse = block_local(logits, *by_token(v - v_mean, token, int8), steps)
    o = [x + float(m) for x, m in zip(o, v_mean, strict=True)]
    return o, lse + scale * dot(q[i], vector)


def row_int8_channels(q, i, k, v, keys, scale, k_scope, attend, code_of=int8, turned=as_it_is):
    vector = sample_mean(k)
    logits = logits_of(turned(q), i, turned(k - vector), keys, scale, token, k_scope)
    o, lse = with_channels(logits, v, robust_mean(v), code_of, attend)
    return o, lse + scale * dot(q[i], vector)


def row_int8_fp16(q, i, k, v, keys, scale):
    vector = sample_mean(k)
    o, lse = in_float16(logits_of(rotated(q), i, rotated(k - vector), keys, scale), v)
    return o, lse + scale * dot(q[i], vector)


def row_int4(q, i, k, v, keys, scale):
    """Q and K of SageAttention2, rotated, with scales of Q's tokens and K's threads."""
    vector, scopes = sample_mean(k), (token, thread_of_key)
    logits = logits_without_means(
        q, i, k, vector, keys, scale, *scopes, code_of=int4, turned=rotated
    )
    o, lse = with_channels(logits, v, robust_mean(v), int8, one_range)
    return o, lse + scale * dot(q[i], vector)


def row_int4_fp16(q, i, k, v, keys, scale):
    vector = sample_mean(k)
    logits = logits_without_means(q, i, k, vector, keys, scale, token, token, code_of=int4)
    o, lse = in_float16(logits, v)
    return o, lse + scale * dot(q[i], vector)


def row_int_flash(q, i, k, v, keys, scale, code_of=int8):
    """INT-FlashAttention, arXiv 2409.16997, Algorithm 1: integers for Q, K, P and V."""
    logits = logits_of(q, i, k, keys, scale, code_of=code_of)
    return online(logits, 128, in_127_steps, values_of(v, whole, code_of))


def row_int_flash_half(q, i, k, v, keys, scale):
    """Its half-INT8 variant: P and V in float16."""
    return in_float16(logits_of(q, i, k, keys, scale), v)


def row_int_flash_rotated(q, i, k, v, keys, scale):
    """Its section 5: Hadamard's matrix for Q, K and V, and V by blocks."""
    logits = logits_of(rotated(q), i, rotated(k), keys, scale)
    o, lse = online(logits, 128, in_127_steps, values_of(rotated(v), block(128), int8))
    return rotated_back(o), lse


def row_sage(q, i, k, v, keys, scale, *scopes):
    """SageAttention, arXiv 2410.02367, section 4: K without its mean, P V in float16."""
    vector = mean(k)
    o, lse = in_float16(logits_of(q, i, k - vector, keys, scale, *scopes), v)
    return o, lse + scale * dot(q[i], vector)


def row_sage_v(q, i, k, v, keys, scale, *scopes):
    """Its variants with P and V in INT8: V per channel, P in steps of 1/127."""
    vector = mean(k)
    logits = logits_of(q, i, k - vector, keys, scale, *scopes)
    o, lse = with_channels(logits, v, NO_VECTOR, int8, running(in_127_steps))
    return o, lse + scale * dot(q[i], vector)


def row_sage2(q, i, k, v, keys, scale, code_of):
    """SageAttention2, arXiv 2411.10958, section 3, with smoothed V."""
    vector, scopes = mean(k), (thread_of_row, thread_of_key)
    logits = logits_without_means(q, i, k, vector, keys, scale, *scopes, code_of=code_of)
    o, lse = with_channels(logits, v, mean(v), fp8, running(in_e4m3))
    return o, lse + scale * dot(q[i], vector)


def row_fp8(q, i, k, v, keys, scale):
    """FlashAttention-3, arXiv 2407.08608, section 3.3: one scale for each of Q, K and V."""
    logits = logits_of(q, i, k, keys, scale, whole, whole, fp8)
    return online(logits, 128, in_e4m3, values_of(v, whole, fp8))


def row_fp16(q, i, k, v, keys, scale):
    q, k = q.astype(np.float16), k.astype(np.float16)
    return in_float16({j: scale * dot(q[i], k[j]) for j in keys}, v)


def row_running_255(q, i, k, v, keys, scale):
    """P in 255 steps of the running maximum, V per channel."""
    logits = logits_of(q, i, k, keys, scale)
    return with_channels(logits, v, NO_VECTOR, int8, running(in_255_steps))


RUNNING = Scheme("running", v_scope="channel", p_range="row", smooth_k="none")

IN_BLOCKS = partial(row_int8_channels, k_scope=block(128))

ROWS = {
    PRESETS["int8"]: row_int8_sorted,
    PRESETS["int8-token"]: row_int8_token,
    PRESETS["int8-block"]: partial(IN_BLOCKS, attend=one_range, turned=rotated),
    # The running maximum moves by powers of two.
    PRESETS["int8-fast"]: partial(
        IN_BLOCKS, attend=running(in_255_steps, math.log(2)), turned=rotated
    ),
    PRESETS["int8-fp8"]: partial(IN_BLOCKS, attend=running(in_e4m3), code_of=fp8),
    PRESETS["int8-fp16"]: row_int8_fp16,
    PRESETS["int8-two-term"]: partial(row_int8_token, steps=65535),
    PRESETS["int4"]: row_int4,
    PRESETS["int4-fp16"]: row_int4_fp16,
    PRESETS["int-flash"]: row_int_flash,
    PRESETS["int-flash-half"]: row_int_flash_half,
    PRESETS["int-flash-int4"]: partial(row_int_flash, code_of=int4),
    PRESETS["int-flash-rotated"]: row_int_flash_rotated,
    PRESETS["sage-t"]: row_sage,
    PRESETS["sage-b"]: lambda *args: row_sage(*args, block(128), block(64)),
    PRESETS["sage-vt"]: row_sage_v,
    PRESETS["sage-vb"]: lambda *args: row_sage_v(*args, block(128), block(128)),
    PRESETS["sage2-8"]: partial(row_sage2, code_of=int8),
    PRESETS["sage2-4"]: partial(row_sage2, code_of=int4),
    PRESETS["twin"]: partial(row_int8_channels, k_scope=token, attend=running(in_twin_steps)),
    PRESETS["fp8"]: row_fp8,
    PRESETS["fp16"]: row_fp16,
    RUNNING: row_running_255,
}
