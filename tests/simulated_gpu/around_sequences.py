"""Kernels beside the quantizer's that read lengths from memory, on the simulated GPU."""

import numpy as np

from cuattn.reference.layout import in_slots
from cuattn.reference.rotation import rotate
from cuattn.reference.smoothing import block_means as means_of
from cuattn.reference.smoothing import products_with_means

from .memory import BLOCK, floats
from .quantizers import source
from .sequences import fields, one_head, places_of


def heads_of(values, spec, heads):
    """Yield heads of sequences, and what each has [1, 1, token, head_dim]."""
    operand = fields(values) | {"heads": heads}
    head_dim = int(values["head_dim"])
    for at in places_of(operand):
        if at.length:
            part = one_head(values, spec, at, head_dim) | {"vector": 0, "mean": 0}
            yield at, source(part, spec, head_dim)


def block_means(values, spec, grid):
    (ctas,), blocks, head_dim = grid, int(values["blocks"]), int(values["head_dim"])
    assert blocks == spec.blocks(int(values["seqlen"]))
    to = floats(values["mean"], (ctas // blocks, blocks, head_dim))
    for at, x in heads_of(values, spec, ctas // blocks):
        found = means_of(x)[0, 0]
        to[at.all_heads, : len(found)] = found


def deltas(values, spec, grid):
    (ctas,), tiles, rows = grid, int(values["tiles"]), int(values["rows"])
    heads, head_dim = ctas // tiles, int(values["head_dim"])
    assert tiles == spec.tiles(int(values["seqlen"]))
    means = floats(values["mean"], (heads, rows, head_dim))
    to = floats(values["delta"], (heads, rows, tiles * spec.keys))
    for at, k in heads_of(values, spec, heads):
        vector = None
        if values["vector"]:
            vector = floats(values["vector"], (heads, head_dim))[at.all_heads][None, None]
        found = np.zeros((1, 1, rows, -(-at.length // BLOCK) * BLOCK))
        products = products_with_means(means[at.all_heads][None, None], k, vector)
        found[..., : at.length] = float(values["factor"]) * products
        stored = in_slots(found + float(values["bias"]))[0, 0]
        to[at.all_heads, :, : stored.shape[1]] = stored


def rotate_values(values, spec, grid):
    (ctas,), tiles, head_dim = grid, int(values["tiles"]), int(values["head_dim"])
    heads, total = ctas // tiles, int(values["total"])
    assert tiles == spec.tiles(int(values["seqlen"]))
    for at, given in heads_of(values, spec, heads):
        x = given.astype(np.float32)
        if values["vector"]:
            x = x - floats(values["vector"], (heads, head_dim))[at.all_heads]
        row, _ = at.stored(total, values["cu_seqlens"])
        to = floats(int(values["out"]) + 4 * row * head_dim, (at.length, head_dim))
        to[...] = rotate(x)[0, 0]
