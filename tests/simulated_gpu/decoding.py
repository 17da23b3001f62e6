"""The kernel that attends to a KV cache, as the simulated GPU runs it."""

import numpy as np

from cuattn.kv.fine import joined
from cuattn.kv.scores import SCORE_AXES, Extra
from cuattn.kv.shares import reciprocal
from cuattn.kv.units import unpack_units
from cuattn.kv_format import UNIT_TOKENS
from cuattn.reference.decode import decode
from cuattn.reference.kv_cache import CachedOperand
from cuattn.specs.attention import Type

from .appending import bare_of, fine_unit_of, integers, lengths_of, turned, unit_of
from .device import NUM_SMS
from .memory import STORAGE, compact, delivered, floats, memory, widened
from .score_rules import expression

# What stands for "hidden" in a mask.
LEAST = {
    Extra.fp16: -65504.0,
    Extra.bf16: -float.fromhex("0x1.fep127"),
    Extra.fp32: np.finfo(np.float32).min,
}


def decode_attention(values, spec, grid):
    store = values["store"]
    batch, heads = int(store["batch"]), int(store["num_kv_heads"])
    group, seqlen = int(values["heads_per_kv"]), int(values["seqlen_q"])
    row_tiles = int(values["row_tiles"])
    assert row_tiles * spec.rows >= group * seqlen > (row_tiles - 1) * spec.rows
    assert not compact(values["arrivals"], (batch * heads * row_tiles,), "<u4").any()
    ctas, parts = NUM_SMS * spec.min_ctas, int(values["parts"])
    if spec.batch_invariant:
        assert 1 <= parts <= max(ctas // (heads * row_tiles), 1)
        ctas = batch * heads * row_tiles * parts
    assert grid == (ctas,)
    check_divisors(values, batch * heads * row_tiles, ctas)
    partials = ctas if spec.batch_invariant else 2 * ctas
    floats(values["partials"], (partials * spec.rows * (spec.head_dim + 3),))[...] = np.nan
    lengths = lengths_of(values)
    shape = (batch, heads * group, seqlen, spec.channels)
    q = widened(rows(values, "q", shape, spec.input), spec.input)
    q = turned(values, spec, q, lengths - seqlen)
    o, lse = decode(
        q,
        *cached(values, spec.kv_format, lengths),
        lengths,
        scale=float(values["softmax_scale"]),
        **rules(values, spec, shape, lengths),
    )
    rows(values, "o", shape, spec.input)[...] = delivered(o, spec.input)
    if values["lse"]:
        floats(values["lse"], shape[:3])[...] = lse


def check_divisors(values, all_heads, ctas):
    """Check what a kernel divides by, of so many CTAs, and tiles of rows of all heads."""
    of_head = ctas // all_heads
    assert int(values["ctas_of_head"]) == of_head
    divisors = {name: int(values[name]) for name in ("heads_per_kv", "row_tiles")}
    for name, divisor in (divisors | {"ctas": ctas, "ctas_of_head": max(of_head, 1)}).items():
        by = values[f"by_{name}"]
        assert {key: int(by[key]) for key in by.dtype.names} == reciprocal(divisor)


def rules(values, spec, shape, lengths):
    """Return what the reference is told of a kernel's features."""
    batch, heads, seqlen, _ = shape
    left, right = int(values["window_left"]), int(values["window_right"])
    assert left >= 0
    assert 0 <= right < max(seqlen, 1)
    found = {"is_causal": bool(values["is_causal"])}
    if spec.window:
        found |= {"is_causal": False, "window_size": (left, right)}
    else:
        assert left >= max(lengths) - 1
        assert found["is_causal"] or right == seqlen - 1
    assert spec.softcap == (values["softcap"] != 0)
    found["softcap"] = float(values["softcap"])
    columns = int(values["mask_columns"])
    whole = {
        "sinks": (heads,),
        "alibi_slopes": (batch, heads),
        "attn_mask": (batch, heads, seqlen, columns),
    }
    for name, of_shape in whole.items():
        kind = getattr(spec, name)
        assert (kind is Extra.none) == (not values[name] or (not columns and name == "attn_mask"))
        if kind is not Extra.none:
            steps = [int(values[f"{name}_stride_{axis}"]) for axis in SCORE_AXES[name]]
            found[name] = extra(values[name], of_shape, steps, kind)
    if "attn_mask" in found:
        found["attn_mask"] = of_tokens(found["attn_mask"], lengths)
    for mod in (spec.score_mod, spec.mask_mod):
        if mod is not None:
            found[mod.name] = expression(values["user"].tolist(), mod)
    return found


def extra(address, shape, steps, kind):
    """Return an array that a call may have; -inf where it hides a token."""
    if kind is Extra.boolean:
        return memory(address, shape, steps, "|u1") != 0
    dtype = Type(kind.value)
    at = memory(address, shape, [step * dtype.nbytes for step in steps], STORAGE[dtype])
    x = widened(at, dtype).astype(np.float32)
    return np.where(x <= LEAST[kind], np.float32(-np.inf), x)


def of_tokens(mask, lengths):
    """Return a mask of all tokens, of whose columns the last one is a sequence's last token."""
    columns = mask.shape[3]
    tokens = max(*lengths, 1)  # as `cached` has them
    found = np.full((*mask.shape[:3], tokens), mask.dtype == bool, mask.dtype)
    for b, length in enumerate(lengths):
        some = min(length, columns)
        found[b, ..., length - some : length] = mask[b, ..., columns - some :]
    return found


def cached(values, kv_format, lengths):
    """Return K and V of all sequences; tokens beyond the lengths are NaN."""
    store = values["store"]
    batch, heads, most = len(lengths), int(store["num_kv_heads"]), max(*lengths, 1)
    of_tokens = (batch, heads, most)
    k_codes, v_codes = (np.full((*of_tokens, kv_format.padded), 99, np.int8) for _ in "kv")
    k_scale, v_scale = (
        np.full((*of_tokens, groups), np.nan, np.float32)
        for groups in (kv_format.k_groups, kv_format.v_groups)
    )
    k_zero = np.full_like(k_scale, np.nan) if kv_format.nested else None
    zero = np.full_like(v_scale, np.nan) if kv_format.has_v_zero else None
    for b in np.flatnonzero(lengths):
        n = lengths[b]
        units = np.stack([unit_of(store, kv_format, b, u) for u in range(-(-n // 16))], axis=1)
        k, v = unpack_units(units[None], kv_format)
        if kv_format.nested:
            k, v = with_lower_halves(store, kv_format, b, (k, v), units)
            k_zero[b, :, :n] = k.zero[0, :, :n]
        k_codes[b, :, :n], k_scale[b, :, :n] = k.codes[0, :, :n], k.scale[0, :, :n]
        v_codes[b, :, :n], v_scale[b, :, :n] = v.codes[0, :, :n], v.scale[0, :, :n]
        if zero is not None:
            zero[b, :, :n] = v.zero[0, :, :n]
    vector = None
    if store["k_offset"]:
        vector = floats(store["k_offset"], (batch, heads, kv_format.head_dim))
    k = CachedOperand(
        k_codes, k_scale, k_zero, vector, bare_of(values), kv_format.rotate, kv_format.head_dim
    )
    return k, CachedOperand(v_codes, v_scale, zero, head_dim=kv_format.head_dim)


def with_lower_halves(store, kv_format, b, upper, units):
    coarse = integers(store["coarse"], int(store["batch"]))[b]
    fine = [fine_unit_of(store, kv_format, b, u, coarse) for u in range(units.shape[1])]
    there = [np.zeros_like(units[:, 0]) if x is None else x for x in fine]
    is_fine = np.repeat([x is not None for x in fine], UNIT_TOKENS)
    lower = unpack_units(np.stack(there, axis=1)[None], kv_format)
    return [joined(x, y, is_fine) for x, y in zip(upper, lower, strict=True)]


def rows(values, name, shape, kind):
    """Return Q or O where it is."""
    itemsize = np.dtype(STORAGE[kind]).itemsize
    steps = [int(values[f"{name}_stride_{axis}"]) * itemsize for axis in ("batch", "head", "row")]
    return memory(values[name], shape, (*steps, itemsize), STORAGE[kind])
