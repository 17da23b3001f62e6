"""The kernel that makes operands of a KV cache, as the simulated GPU runs it."""

import numpy as np

from cuattn.reference.kv_cache import fine_units
from cuattn.reference.kv_operands import sorted_operands
from cuattn.reference.layout import transpose_v

from . import sorted_keys
from .appending import integers, lengths_of
from .decoding import cached
from .memory import BLOCK, compact, floats


def store_operands(values, spec, grid):
    store, kv_format = values["store"], spec.kv_format
    batch, heads = int(store["batch"]), int(store["num_kv_heads"])
    blocks, window = int(values["blocks"]), int(values["window"])
    assert grid == (batch * heads * blocks,)
    if values["bounds"]:
        bounds = np.arange(batch + 1) * int(values["bound_step"])
        integers(values["bounds"], batch + 1)[...] = bounds
    lengths = [min(int(n), blocks * BLOCK) for n in lengths_of(values)]
    k, v = cached(values, kv_format, lengths)
    for b in np.flatnonzero(lengths).tolist():
        n = lengths[b]
        is_fine = None
        if kv_format.nested:
            coarse = int(integers(store["coarse"], batch)[b])
            is_fine = np.repeat(fine_units(n, coarse, int(store["first_units"])), 16)
        of_k, of_v = k.of_sequence(b), v.of_sequence(b)
        bits = {"k_bits": kv_format.k_bits, "v_bits": kv_format.v_bits}
        made = sorted_operands(of_k, of_v, n, **bits, is_fine=is_fine)
        hidden = max(n - window, 0) // BLOCK
        for h in range(heads):
            first = b * int(values["places_of_sequence"]) + h * int(values["places_of_head"])
            store_head(values, made, h, first, hidden)


def store_head(values, made, head, first, hidden):
    """Write the blocks of a head to its places, but for those that no row sees."""
    here = slice(head, head + 1)
    order = made[0].order[:, here].astype(np.intp)
    _, _, blocks, _ = order.shape
    codes = [sorted_keys.in_columns(x.codes[:, here], order) for x in made]
    scales = [
        sorted_keys.stored_scale(name, x.scale[:, here], order)
        for name, x in zip("kv", made, strict=True)
    ]
    head_dim = codes[0].shape[3]
    parts = (
        ("k_codes", codes[0].reshape(blocks, BLOCK, head_dim), "|i1"),
        ("v_codes", transpose_v(codes[1])[0, 0], "|i1"),
        ("k_scale", scales[0][0, 0], "<f4"),
        ("v_scale", scales[1][0, 0], "<f4"),
        ("order", order[0, 0], "|u1"),
    )
    for name, x, kind in parts:
        of_block = x[0].size * np.dtype(kind).itemsize
        to = compact(int(values[name]) + first * of_block, x.shape, kind)
        to[hidden:] = x[hidden:]
        if name == "order":  # the others are still garbage
            to[:hidden] = np.arange(BLOCK)
        elif name == "v_scale":
            floats(int(values[name]) + first * of_block, x.shape)[:hidden] = np.nan
