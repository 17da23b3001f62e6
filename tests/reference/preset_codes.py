"""Codes, scopes of scales, means and rotation, written out number by number from their definitions.

Nothing here shares code with `cuattn.reference`. What kernels compute in float32 is float32 here.
"""

import math
import struct
from functools import partial

import numpy as np

HEAD_DIM = 4

# Magnitudes of e4m3 in the order of their bits, so that the even ones have an even fraction.
E4M3 = [f * 2.0**-9 for f in range(8)]
E4M3 += [(8 + f) * 2.0 ** (e - 10) for e in range(1, 16) for f in range(8)][:-1]


def nearest_e4m3(x):
    bits = min(range(127), key=lambda i: (abs(E4M3[i] - abs(x)), i % 2))
    return math.copysign(E4M3[bits], x)


def codes(values, largest, nearest):
    """Symmetric codes of some float32 numbers, and their common scale."""
    a = max([np.float32(2.0**-100), *(abs(np.float32(x)) for x in values)])
    factor = np.float32(largest) / a
    found = [nearest(float(np.float32(x) * factor)) for x in values]
    return found, float(a / np.float32(largest))


def int8(values):
    return codes(values, 127, round)


def int4(values):
    return codes(values, 7, round)


def fp8(values):
    return codes(values, 448, nearest_e4m3)


# Scopes of tokens: those of which this is equal have one scale.


def token(t):
    return t


def block(size):
    return lambda t: t // size


def whole(_):
    return 0


def thread_of_row(t):
    """SageAttention2, arXiv 2411.10958, section 3.2: of 32 rows of Q those that are 8 apart."""
    return t // 32, t % 8


def thread_of_key(t):
    """Of 64 keys the pairs that are 8 apart."""
    return t // 64, t // 2 % 4


def sort_key(rows, t):
    """Of a token of a block: 15 bits of the fraction of its largest magnitude, then its number.

    What is missing of the last block is larger than any token.
    """
    bits = 0x7FFFFFFF
    if t < len(rows):
        bits = struct.unpack("<I", struct.pack("<f", max(abs(float(x)) for x in rows[t])))[0]
    return bits >> 1 & ~127 | t


def pairs(tokens, key):
    """Put pairs of neighbours in the order of their larger members."""
    parts = [tokens[i : i + 2] for i in range(0, len(tokens), 2)]
    return [t for part in sorted(parts, key=lambda part: max(map(key, part))) for t in part]


def lanes_and_sections(k, v):
    """Sorted keys: of every token its block, its lane and the section of the lane that it is in.

    Of a block's 128 places the lanes 0 to 3 have two each of the smallest 8 tokens of V, 12 of the
    next 48, 14 of the next 56 and four of the largest 16. Lanes of the 48 and 56 are by K, and so
    are those of the 8, of which two neighbours stay together, by their larger, and of each 8 of the
    16, two lanes.
    """
    found = []
    for first in range(0, len(k), 128):
        by_k, by_v = (partial(sort_key, x[first : first + 128]) for x in (k, v))
        order = sorted(range(128), key=by_v)
        small, large = sorted(order[8:56], key=by_k), sorted(order[56:112], key=by_k)
        place = {}
        least = pairs(order[:8], by_k)
        most = sorted(order[112:120], key=by_k) + sorted(order[120:], key=by_k)
        sections = ((least, 2), (small, 12), (large, 14), (most, 4))
        for section, (tokens, width) in enumerate(sections):
            place |= {t: (first, i // width, section) for i, t in enumerate(tokens)}
        found += [place[t] for t in range(min(128, len(k) - first))]
    return found


def by_token(x, scope, code_of):
    """Codes of tokens, and the scale of each."""
    members = {}
    for t in range(len(x)):
        members.setdefault(scope(t), []).append(t)
    rows, scales = [None] * len(x), [None] * len(x)
    for tokens in members.values():
        flat, scale = code_of(x[tokens].ravel())
        for i, t in enumerate(tokens):
            rows[t], scales[t] = flat[i * HEAD_DIM : (i + 1) * HEAD_DIM], scale
    return rows, scales


def by_channel(x, code_of):
    """Codes of tokens, and the scale of each channel."""
    columns = [code_of(column) for column in x.T]
    return list(zip(*(found for found, _ in columns), strict=True)), [scale for _, scale in columns]


def mean(x):
    return np.array([np.float32(math.fsum(map(float, x[:, d])) / len(x)) for d in range(HEAD_DIM)])


def robust_mean(x):
    """Means of 16 runs of tokens within Tukey's outer fences, weighted by their lengths."""
    return np.array([np.float32(robust([float(a) for a in x[:, d]])) for d in range(HEAD_DIM)])


def robust(numbers):
    n = len(numbers)
    runs = [numbers[g * n // 16 : (g + 1) * n // 16] for g in range(16)]
    means = [(math.fsum(run) / len(run), len(run)) for run in runs if run]
    ordered = sorted(mean for mean, _ in means)
    quarter = (len(ordered) + 1) // 4
    low, high = ordered[quarter], ordered[-1 - quarter]
    reach = 3 * (high - low)
    return math.fsum(min(max(m, low - reach), high + reach) * size for m, size in means) / n


def sample_mean(x):
    """The same of at most 512 tokens, evenly spaced."""
    count = min(512, len(x))
    return robust_mean(x[[i * len(x) // count for i in range(count)]])


def signs(channels=HEAD_DIM):
    """Signs of the channels: the top bits of Marsaglia's xorshift32."""
    state, found = 0x9E3779B9, []
    for _ in range(channels):
        state ^= (state << 13) % 2**32
        state ^= state >> 17
        state ^= (state << 5) % 2**32
        found.append(-1 if state >= 2**31 else 1)
    return found


def hadamard(i, j):
    """Element of Sylvester's matrix: 1, or -1 if i and j have an odd number of bits in common."""
    return -1 if (i & j).bit_count() % 2 else 1


def pairwise_sum(terms):
    """Sum of neighbours, then of neighbouring sums: the order in float32 of butterflies."""
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] for i in range(0, len(terms), 2)]
    return terms[0]


def rotated(x):
    """Rows times signs and Hadamard's matrix, in float32."""
    turned = [
        [
            pairwise_sum([np.float32(hadamard(i, j) * s) * row[i] for i, s in enumerate(signs())])
            for j in range(HEAD_DIM)
        ]
        for row in x
    ]
    return np.array(turned, np.float32) * np.float32(HEAD_DIM**-0.5)


def rotated_back(o):
    return [
        s * math.fsum(hadamard(i, j) * o[j] for j in range(HEAD_DIM)) * HEAD_DIM**-0.5
        for i, s in enumerate(signs())
    ]
