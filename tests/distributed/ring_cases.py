"""Inputs of rings, and what they are held against."""

import numpy as np

from cuattn.distributed import run_virtual, shard, unshard

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64


def inputs(rng, tokens, dtype=np.float32, heads=HEADS, kv_heads=KV_HEADS, tokens_of_k=None):
    """Return q, k and v of a whole sequence."""
    shapes = [(heads, tokens)] + 2 * [(kv_heads, tokens if tokens_of_k is None else tokens_of_k)]
    return [rng.standard_normal((1, *shape, HEAD_DIM)).astype(dtype) for shape in shapes]


def sharded(arrays, group, placement):
    """Return what a rank has of each array."""
    return [shard(x, group.size, group.rank, placement) for x in arrays]


def over_ranks(attend, arrays, size, placement, **options):
    """Return o and lse of a whole sequence, from ranks of this process."""

    def work(group):
        own = sharded(arrays, group, placement)
        return attend(*own, group, placement=placement, return_lse=True, **options)

    return whole(run_virtual(size, work), placement)


def whole(results, placement):
    o = unshard([o for o, _ in results], placement)
    return o, unshard([lse[..., None] for _, lse in results], placement)[..., 0]


def seen_by(part):
    """Return which of a call's keys each of its rows sees."""
    left, right = part.window_size
    assert min(left, right) >= -1
    count = part.stop - part.start
    i = np.arange(count)[:, None] + part.keys - (count + part.pad)
    j = np.arange(part.keys)[None, :]
    return ((left < 0) | (j >= i - left)) & ((right < 0) | (j <= i + right))


def relative_l1(o, exact):
    return np.abs(o - exact).sum() / np.abs(exact).sum()
