"""The kernel that makes codes of many queries to a KV cache, as the simulated GPU runs it."""

import numpy as np

from cuattn.reference.quantized import quantize
from cuattn.reference.rope import rope
from cuattn.reference.smoothing import lse_shift

from .appending import integers
from .memory import STORAGE, compact, floats, memory, widened
from .sequences import places


def store_queries(values, spec, grid):
    heads, tiles = int(values["num_q_heads"]), int(values["tiles"])
    batch, pitch, most = grid[0] // (heads * tiles), int(values["pitch"]), int(values["seqlen_q"])
    assert grid == (batch * heads * tiles,)
    assert tiles == spec.tiles(most)
    bounds, group = int(values["cu_seqlens_q"]), int(values["heads_per_kv"])
    size = spec.input.nbytes
    steps = [size * int(values[f"q_stride_{axis}"]) for axis in ("batch", "head", "row")]
    for at in places(bounds, 0, batch, heads, most):
        n = at.length
        if not n:
            continue
        of_batch = 0 if bounds else at.batch * steps[0]
        address = int(values["q"]) + of_batch + at.head * steps[1] + at.first * steps[2]
        assert not values["q_aligned"] or address % 16 == 0
        shape = (n, spec.channels)
        x = widened(memory(address, shape, (steps[2], size), STORAGE[spec.input]), spec.input)
        x = turned(values, spec, x[None, None], at)
        row, _ = at.stored(pitch, bounds)
        vector = None
        if values["k_offset"]:
            of_head = 4 * (at.all_heads // group) * spec.channels
            vector = floats(int(values["k_offset"]) + of_head, (1, 1, spec.channels))
        if values["lse_shift"]:
            shift = lse_shift(x, vector, float(values["softmax_scale"]))
            floats(int(values["lse_shift"]) + 4 * row, (n,))[...] = shift[0, 0]
        padded = np.pad(x, [(0, 0)] * 3 + [(0, spec.head_dim - spec.channels)])
        made = quantize(padded, scope="token", rotated=spec.rotate)
        codes = compact(int(values["codes"]) + row * spec.head_dim, (n, spec.head_dim), "|i1")
        codes[...] = made.codes[0, 0]
        floats(int(values["scale"]) + 4 * row, (n,))[...] = made.scale[0, 0]


def turned(values, spec, x, at):
    """Return the rows of a head turned by their positions, if the kernel does so."""
    of_call, n = values["rope"], at.length
    names = ("cos", "sin", "positions")
    if not spec.rope:
        assert not any(of_call[name] for name in names)
        return x
    sizes = (int(of_call["num_positions"]), int(of_call["pairs"]))
    cos, sin = (floats(of_call[name], sizes) for name in names[:2])
    ends = values["ends"] or values["lengths"]
    end = integers(ends, at.batch + 1)[at.batch]
    positions = np.maximum(end - n + np.arange(n), 0)
    if of_call["positions"]:
        first = at.first if values["cu_seqlens_q"] else at.batch * int(values["seqlen_q"])
        positions = compact(int(of_call["positions"]) + 4 * first, (n,), "<i4")
    return rope(x, cos, sin, positions[None], interleaved=bool(of_call["interleaved"]))
