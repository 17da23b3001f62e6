"""Sequences of different lengths that tests share."""

import numpy as np

# Around tiles and blocks, empty ones among them; more rows than keys, and fewer.
LENGTHS_Q = (0, 1, 63, 64, 127, 128, 129, 300, 40, 7)
LENGTHS_K = (5, 0, 64, 129, 128, 127, 300, 63, 1, 400)


def bounds(lengths):
    """Return where sequences begin, and where the last one ends."""
    return np.cumsum([0, *lengths]).astype(np.int32)


def packed(rng, lengths_q, lengths_k, *, heads=(4, 2), head_dim=64, beyond=0):
    """Return Q, K and V [token, head, head_dim] in float32, with NaN behind the last sequence."""
    total_q, total_k = sum(lengths_q), sum(lengths_k)
    arrays = []
    for total, count in ((total_q, heads[0]), (total_k, heads[1]), (total_k, heads[1])):
        x = rng.standard_normal((total + beyond, count, head_dim), dtype=np.float32)
        x[total:] = np.nan
        arrays.append(x)
    q, k, v = arrays
    k += 2 * rng.standard_normal((1, heads[1], head_dim), dtype=np.float32)
    v += np.float32(0.5)
    return q, k, v


def one_of(x, begin, end):
    """Return one sequence as an array [1, token, head, head_dim]."""
    return x[None, begin:end]
