"""The kernels that measure ceilings, in NumPy: what they store, not how fast."""

import numpy as np

from cuattn.reference.rounding import e4m3_values
from cuattn.specs.attention import Type

from .memory import STORAGE, compact


def memory_rate(values, spec, grid):
    source = compact(values["from"], (int(values["chunks"]), 4), "<u4")
    if spec.writes:
        compact(values["to"], source.shape, "<u4")[...] = source
        return
    turns = source.reshape(-1, spec.chunks, spec.num_threads, 4)
    words = np.zeros((grid[0], spec.num_threads), np.uint32)
    for turn, chunk in enumerate(turns):
        words[turn % grid[0]] ^= np.bitwise_xor.reduce(chunk, axis=(0, 2))
    compact(values["to"], words.shape, "<u4")[...] = words


def product_rate(values, spec, grid):
    """Leave to one lane what all lanes of a warp or warpgroup add up together."""
    columns = spec.row_bytes // spec.type.nbytes
    a, b = (
        compact(values[name], (rows, columns), STORAGE[spec.type])
        for name, rows in (("a", spec.a_rows), ("b", spec.b_rows))
    )
    if spec.type is Type.e4m3:
        a, b = e4m3_values(a), e4m3_values(b)
    lanes = 128 if spec.warpgroups else 32
    shape = (grid[0] * spec.num_threads // lanes, lanes)
    sums = compact(values["sums"], shape, "<i4" if spec.type is Type.int8 else "<f4")
    sums[...] = 0
    sums[:, 0] = values["rounds"] * (a.sum(0, np.float64) @ b.sum(0, np.float64))
