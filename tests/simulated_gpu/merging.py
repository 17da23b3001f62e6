"""The kernel that merges states, in NumPy: the rows it reads and writes, the reference's sums."""

import numpy as np

from cuattn.reference.merging import merge_states as merged_states

from .memory import STORAGE, compact, floats, memory, narrowed, widened


def merge_states(values, spec, grid):
    heads, seqlen, head_dim, rows = (
        int(values[name]) for name in ("num_heads", "seqlen", "head_dim", "rows")
    )
    shape = rows // (heads * seqlen), heads, seqlen, head_dim
    tile, lanes = int(values["tile"]), int(values["lanes"])
    assert np.prod(shape[:3]) == rows
    assert grid == (-(-rows // tile),)
    assert lanes * tile <= spec.num_threads
    assert 16 * spec.chunks * (lanes - 1) < head_dim * spec.input.nbytes <= 16 * spec.chunks * lanes
    o, lse = [], []
    if values["carried_o"]:
        o.append(floats(values["carried_o"], shape))
        lse.append(floats(values["carried_lse"], shape[:3]))
    for part in values["part"][: int(values["num_parts"])]:
        x = _array(part["o"], _strides(part, "o"), shape, spec.input, spec.aligned)
        o.append(widened(x, spec.input))
        strides = [4 * step for step in _strides(part, "lse")]
        lse.append(memory(part["lse"], shape[:3], strides, "<f4"))
    merged, merged_lse = merged_states(np.stack(o), np.stack(lse))
    aligned = spec.aligned or spec.out is not spec.input
    to = _array(values["o"], _strides(values, "o"), shape, spec.out, aligned)
    to[...] = narrowed(merged, spec.out)
    compact(values["lse"], shape[:3], "<f4")[...] = merged_lse


def _strides(struct, name):
    return [int(struct[f"{name}_stride_{axis}"]) for axis in ("batch", "head", "token")]


def _array(address, strides, shape, kind, aligned):
    steps = [step * kind.nbytes for step in strides]
    taken = [step for step, n in zip(steps, shape, strict=False) if n > 1]
    assert not aligned or not any(place % 16 for place in (int(address), *taken))
    return memory(address, shape, [*steps, kind.nbytes], STORAGE[kind])
