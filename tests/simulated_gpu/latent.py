"""The kernels of the latent cache, as the simulated GPU runs them."""

import numpy as np

from cuattn.kv_format import UNIT_TOKENS
from cuattn.operands.operand import DTYPES
from cuattn.reference.latent import LatentTokens, decode_latent, quantize_latent
from cuattn.reference.layout import in_slots, in_tokens

from .appending import by_sequence, counts_of, integers, lacks_room, lengths_of
from .decoding import check_divisors, rows
from .device import NUM_SMS
from .memory import compact, delivered, floats, memory, narrowed, widened

TOKENS = 64
CODES, ROPE, SCALES = 64 * 512, 64 * 128, 64 * 4
UNIT = CODES + ROPE + SCALES
NAMES = {kind: name for name, kind in DTYPES.items()}


def append_latent(values, spec, grid):
    store = values["store"]
    batch, seqlen = int(store["batch"]), int(values["seqlen"])
    assert grid == ((1 if spec.packed else batch) * -(-seqlen // 4),)
    assert not compact(values["arrivals"], (1,), "<u4")[0]
    if lacks_room(values, seqlen):
        integers(values["refused"], 1)[0] = 1
        return
    latent, rope = (source(values, spec, *of) for of in (("k", 512), ("v", 64)))
    lengths, counts = lengths_of(values), counts_of(values)
    for b in np.flatnonzero(counts):
        some = slice(b, b + 1), slice(counts[b])
        made = quantize_latent(latent[some], rope[some], NAMES[spec.rope])
        for i in range(counts[b]):
            unit, token = divmod(int(lengths[b]) + i, TOKENS)
            codes, of_rope, scale = parts(store, b, unit)
            codes[:, token] = made.codes[0, i].reshape(32, 16)
            of_rope[:, token] = narrowed(made.rope[0, i], spec.rope).view("<u2").reshape(8, 8)
            natural = in_tokens(scale)
            natural[token] = made.scale[0, i]
            scale[...] = in_slots(natural)
    lengths += counts


def decode_latent_attention(values, spec, grid):
    store = values["store"]
    assert grid == (NUM_SMS,)
    batch, heads, seqlen = int(store["batch"]), int(values["heads_per_kv"]), int(values["seqlen_q"])
    row_tiles = int(values["row_tiles"])
    assert row_tiles * spec.rows >= heads * seqlen > (row_tiles - 1) * spec.rows
    assert not compact(values["arrivals"], (batch * row_tiles,), "<u4").any()
    assert int(values["parts"]) in (0, NUM_SMS)
    check_divisors(values, batch * row_tiles, NUM_SMS)
    floats(values["partials"], (2 * grid[0] * spec.rows * (512 + 3),))[...] = np.nan
    lengths = lengths_of(values)
    q = widened(rows(values, "q", (batch, heads, seqlen, 576), spec.input), spec.input)
    o, lse = decode_latent(
        q,
        tokens_of(store, spec, lengths),
        lengths,
        scale=float(values["softmax_scale"]),
        is_causal=bool(values["is_causal"]),
    )
    rows(values, "o", o.shape, spec.input)[...] = delivered(o, spec.input)
    if values["lse"]:
        floats(values["lse"], lse.shape)[...] = lse


def merge_latent(values, spec, grid):
    """Parts are none: the kernel before has left O whole."""
    store = values["store"]
    assert grid == (int(store["batch"]) * int(values["row_tiles"]) * spec.rows,)
    assert int(values["parts"]) == NUM_SMS


def tokens_of(store, spec, lengths):
    """Return the tokens of all sequences; those beyond the lengths are NaN."""
    shape = (len(lengths), max(*lengths, 1))
    codes, scale = np.full((*shape, 512), 99, np.int8), np.full(shape, np.nan, np.float32)
    rope = np.full((*shape, 64), np.nan, np.float32)
    for b, length in enumerate(lengths):
        for token in range(length):
            unit, place = divmod(token, TOKENS)
            of_codes, of_rope, of_scale = parts(store, b, unit)
            codes[b, token] = of_codes[:, place].reshape(512)
            bits = np.ascontiguousarray(of_rope[:, place]).reshape(64)
            rope[b, token] = widened(
                bits if NAMES[spec.rope] == "bfloat16" else bits.view("<f2"), spec.rope
            )
            scale[b, token] = in_tokens(of_scale)[place]
    return LatentTokens(codes, scale, rope, NAMES[spec.rope])


def parts(store, b, unit):
    """Return codes [chunk, token, byte], rotary channels and scales of a unit, where they are."""
    page = b
    if store["pages"]:
        units = int(store["page_units"]) * UNIT_TOKENS // TOKENS
        table = compact(
            store["pages"], (int(store["batch"]), int(store["pages_per_sequence"])), "<i4"
        )
        page, unit = table[b, unit // units], unit % units
    assert UNIT * (unit + 1) <= int(store["page_stride"])
    address = int(store["units"]) + int(page) * int(store["page_stride"]) + UNIT * unit
    return (
        compact(address, (32, TOKENS, 16), "|i1"),
        compact(address + CODES, (8, TOKENS, 8), "<u2"),
        compact(address + CODES + ROPE, (TOKENS,), "<f4"),
    )


def source(values, spec, name, channels):
    """Return tokens [batch, token, channel] of the caller's."""
    itemsize = spec.input.nbytes
    steps = [int(values[f"{name}_stride_{axis}"]) * itemsize for axis in ("batch", "token")]
    if spec.aligned:
        assert not int(values[name]) % 16
    batch = 1 if spec.packed else int(values["store"]["batch"])
    shape = (batch, int(values["seqlen"]), channels)
    kind = {2: "<f2", 4: "<f4"}[itemsize] if NAMES[spec.input] != "bfloat16" else "<u2"
    rows = widened(memory(values[name], shape, (*steps, itemsize), kind), spec.input)
    return by_sequence(values, rows[:, None])[:, 0] if spec.packed else rows
