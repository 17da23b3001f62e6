"""The kernel that attends to a KV cache, as the simulated GPU runs it."""

import numpy as np

from cuattn.kv.units import unpack_units
from cuattn.reference.decode import decode
from cuattn.reference.kv_cache import CachedOperand

from .appending import lengths_of, unit_of
from .device import NUM_SMS
from .memory import STORAGE, compact, delivered, floats, memory, widened


def decode_attention(values, spec, grid):
    store = values["store"]
    assert grid == (NUM_SMS * spec.min_ctas,)
    batch, heads = int(store["batch"]), int(store["num_kv_heads"])
    group, seqlen = int(values["heads_per_kv"]), int(values["seqlen_q"])
    row_tiles = int(values["row_tiles"])
    assert row_tiles * spec.rows >= group * seqlen > (row_tiles - 1) * spec.rows
    assert not compact(values["arrivals"], (batch * heads * row_tiles,), "<u4").any()
    floats(values["partials"], (2 * grid[0] * spec.rows * (spec.head_dim + 2),))[...] = np.nan
    lengths = lengths_of(values)
    shape = (batch, heads * group, seqlen, spec.head_dim)
    q = widened(rows(values, "q", shape, spec.input), spec.input)
    o, lse = decode(
        q,
        *cached(store, spec.kv_format, lengths),
        lengths,
        scale=float(values["softmax_scale"]),
        is_causal=bool(values["is_causal"]),
    )
    rows(values, "o", shape, spec.input)[...] = delivered(o, spec.input)
    if values["lse"]:
        floats(values["lse"], shape[:3])[...] = lse


def cached(store, kv_format, lengths):
    """Return K and V of all sequences; tokens beyond the lengths are NaN."""
    batch, heads, most = len(lengths), int(store["num_kv_heads"]), max(*lengths, 1)
    of_tokens = (batch, heads, most)
    k_codes, v_codes = (np.full((*of_tokens, kv_format.head_dim), 99, np.int8) for _ in "kv")
    k_scale, v_scale = (
        np.full((*of_tokens, groups), np.nan, np.float32)
        for groups in (kv_format.k_groups, kv_format.v_groups)
    )
    zero = np.full_like(v_scale, np.nan) if kv_format.v_zero else None
    for b in np.flatnonzero(lengths):
        n = lengths[b]
        units = np.stack([unit_of(store, kv_format, b, u) for u in range(-(-n // 16))], axis=1)
        k, v = unpack_units(units[None], kv_format)
        k_codes[b, :, :n], k_scale[b, :, :n] = k.codes[0, :, :n], k.scale[0, :, :n]
        v_codes[b, :, :n], v_scale[b, :, :n] = v.codes[0, :, :n], v.scale[0, :, :n]
        if zero is not None:
            zero[b, :, :n] = v.zero[0, :, :n]
    vector = None
    if store["k_offset"]:
        vector = floats(store["k_offset"], (batch, heads, kv_format.head_dim))
    return CachedOperand(k_codes, k_scale, None, vector), CachedOperand(v_codes, v_scale, zero)


def rows(values, name, shape, kind):
    """Return Q or O where it is."""
    itemsize = np.dtype(STORAGE[kind]).itemsize
    steps = [int(values[f"{name}_stride_{axis}"]) * itemsize for axis in ("batch", "head", "row")]
    return memory(values[name], shape, (*steps, itemsize), STORAGE[kind])
