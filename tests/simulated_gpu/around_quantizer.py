"""The kernels that work beside the quantizer's, as the simulated GPU runs them."""

import numpy as np

from cuattn.reference.layout import in_slots
from cuattn.reference.rotation import rotate
from cuattn.reference.smoothing import block_means as means_of
from cuattn.reference.smoothing import products_with_means
from cuattn.specs.unpack import PIECE

from .memory import BLOCK, compact, floats
from .quantizers import source


def input_of(values, spec, heads):
    operand = {name: values[name] for name in values.dtype.names} | {"heads": heads}
    return source(operand, spec, int(values["head_dim"]))


def block_means(values, spec, grid):
    (ctas,), blocks = grid, int(values["blocks"])
    assert blocks == spec.blocks(int(values["seqlen"]))
    x = input_of(values, spec, ctas // blocks)
    means = means_of(x)
    assert means.size == ctas * x.shape[3]
    floats(values["mean"], means.shape)[...] = means


def deltas(values, spec, grid):
    (ctas,), tiles, rows = grid, int(values["tiles"]), int(values["rows"])
    assert tiles == spec.tiles(int(values["seqlen"]))
    k = input_of(values, spec, ctas // tiles)
    batch, heads, tokens, head_dim = k.shape
    assert batch * heads * tiles == ctas
    vector = floats(values["vector"], (batch, heads, head_dim)) if values["vector"] else None
    means = floats(values["mean"], (batch, heads, rows, head_dim))
    padded = np.zeros((batch, heads, rows, -(-tokens // BLOCK) * BLOCK))
    padded[..., :tokens] = float(values["factor"]) * products_with_means(means, k, vector)
    padded += float(values["bias"])
    # What no query of a block sees may be anything.
    first_key = np.arange(padded.shape[3]) // spec.keys * spec.keys
    first_block = np.maximum(first_key - int(values["last_key"]), 0) // BLOCK
    padded[..., np.arange(rows)[:, None] % int(values["blocks"]) < first_block] = np.nan
    floats(values["delta"], padded.shape)[...] = in_slots(padded)


def rotate_values(values, spec, grid):
    (ctas,), tiles = grid, int(values["tiles"])
    assert tiles == spec.tiles(int(values["seqlen"]))
    x = input_of(values, spec, ctas // tiles).astype(np.float32)
    batch, heads, _, head_dim = x.shape
    assert batch * heads * tiles == ctas
    if values["vector"]:
        x = x - floats(values["vector"], (batch, heads, 1, head_dim))
    floats(values["out"], x.shape)[...] = rotate(x)


def unpack(values, spec, grid):
    pieces = int(values["pieces"])
    assert grid == (spec.ctas(pieces * PIECE),)
    packed = compact(values["packed"], (pieces * PIECE // 2,), "|u1").astype(np.int8)
    codes = compact(values["codes"], (pieces * PIECE // 2, 2), "|i1")
    codes[...] = np.stack([packed << 4 >> 4, packed >> 4], axis=1)
