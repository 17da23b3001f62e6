"""The online softmax of the papers, and what each makes of P, one row at a time."""

import math

import numpy as np
from preset_codes import HEAD_DIM, nearest_e4m3


def blocks(logits, size, unit=None):
    """Visible keys, block by block, the first one last, each with the running maximum after it.

    With a unit, it stands 0.746 of it higher after the first visit, and moves by multiples of it.
    """
    running = -math.inf
    starts = [*range(size, max(logits) + 1, size), 0]
    for start in starts:
        block = [j for j in range(start, start + size) if j in logits]
        higher = max(running, *(logits[j] for j in block))
        if unit and running > -math.inf:
            higher = running + unit * math.ceil((higher - running) / unit)
        elif unit:
            higher += math.log2(255 / 152) * unit
        running = higher
        yield block, running


def online(logits, size, weight_of, value, unit=None):
    """FlashAttention's recurrence, P replaced by `weight_of(p)` in the product with V only."""
    top, total, o = -math.inf, 0.0, [0.0] * HEAD_DIM
    for keys, running in blocks(logits, size, unit):
        shrink = math.exp(top - running)
        total *= shrink
        o = [x * shrink for x in o]
        top = running
        for j in keys:
            p = math.exp(logits[j] - running)
            total += p
            o = [x + weight_of(p) * value[j][d] for d, x in enumerate(o)]
    return [x / total for x in o], top + math.log(total)


def block_local(logits, v8, v_scale, steps=255):
    """P in steps of the largest probability times V scale inside each block of 128 keys."""
    total, o, top = 0.0, [0.0] * HEAD_DIM, max(logits.values())
    for keys, _ in blocks(logits, 128):
        x = {j: logits[j] + math.log(v_scale[j]) for j in keys}
        block_max = max(x.values())
        codes = {j: round(steps * math.exp(x[j] - block_max)) for j in keys}
        for d in range(HEAD_DIM):
            exact = sum(codes[j] * v8[j][d] for j in keys)
            o[d] += exact * math.exp(block_max - top) / steps
        total += math.fsum(math.exp(logits[j] - top) for j in keys)
    return [x / total for x in o], top + math.log(total)


def in_255_steps(p):
    return round(255 * p) / 255


def in_127_steps(p):
    """INT-FlashAttention, arXiv 2409.16997, Algorithm 1: halves are rounded up."""
    return math.floor(127 * p + 0.5) / 127


def in_twin_steps(p):
    """PTQ4ViT, arXiv 2111.12293, equation 5: 127 steps up to 2^-4, and 127 up to 1."""
    return round(127 * 16 * p) / (127 * 16) if p < 1 / 16 else round(127 * p) / 127


def in_e4m3(p):
    """SageAttention2, arXiv 2411.10958, section 3.3: P times 448."""
    return nearest_e4m3(448 * p) / 448


def in_half(p):
    return float(np.float16(p))
