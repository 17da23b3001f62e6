"""The kernels that append to a KV cache, as the simulated GPU runs them."""

import numpy as np

from cuattn.kv.fine import halves
from cuattn.kv.units import pack_units, unpack_units
from cuattn.kv_format import UNIT_TOKENS
from cuattn.reference.kv_cache import quantize_keys, quantize_nested, quantize_values
from cuattn.reference.kv_offsets import bare_tokens, offsets
from cuattn.reference.rope import rope

from .memory import compact, floats
from .quantizers import source


def fix_offsets(values, spec, grid):
    store = values["store"]
    assert grid == (store["batch"] * store["num_kv_heads"],)
    if lacks_room(values, values["seqlen"]):
        return
    k = turned(values, spec, tokens(values, spec, "k", spec.head_dim), lengths_of(values))
    vectors = k_offset(values, k.shape)
    counts = counts_of(values)
    lengths, bare = lengths_of(values), bare_of(values)
    bare[...] = bare_tokens(counts, lengths, bare)
    fixed = integers(values["fixed"], len(lengths)) if values["fixed"] else np.zeros_like(bare)
    vectors[...] = offsets(k, counts, lengths, vectors, bare * (fixed == 0))


def append_tokens(values, spec, grid):
    store = values["store"]
    batch, heads, seqlen = (
        int(x) for x in (store["batch"], store["num_kv_heads"], values["seqlen"])
    )
    assert grid == (heads * (values["packed"]["shares"] or batch * spec.pieces(seqlen)),)
    assert not compact(values["arrivals"], (1,), "<u4")[0]
    if lacks_room(values, seqlen):
        integers(values["refused"], 1)[0] = 1
        return
    lengths, counts = lengths_of(values), counts_of(values)
    if spec.packed:
        check_shares(values, lengths)
    k, v = (tokens(values, spec, name, spec.channels) for name in "kv")
    k = turned(values, spec, k, lengths)
    ends = lengths + counts
    vectors = k_offset(values, k.shape) if store["k_offset"] else None
    kv_format = spec.kv_format
    coarse = coarse_after(store, lengths, ends) if kv_format.nested else None
    for b in np.flatnonzero(counts):
        vector = None if vectors is None else vectors[b : b + 1]
        x, y = (t[b : b + 1, :, : counts[b]] for t in (k, v))
        where, before = slice(lengths[b], ends[b]), lengths[b : b + 1]
        touched = range(lengths[b] // UNIT_TOKENS, -(-ends[b] // UNIT_TOKENS))
        units = [unit_of(store, kv_format, b, u) for u in touched]
        bare = None if vector is None else bare_of(values)[b : b + 1]
        if not kv_format.nested:
            new = quantize_keys(x, kv_format, vector, before, bare), quantize_values(y, kv_format)
            put_tokens(units, kv_format, where, new)
            continue
        made = map(halves, quantize_nested(x, y, kv_format, vector, before, bare))
        upper, lower = zip(*made, strict=True)
        put_tokens(units, kv_format, where, upper)
        fine = [fine_unit_of(store, kv_format, b, u, coarse[b]) for u in touched]
        scratch = np.zeros_like(units[0])
        put_tokens([scratch if x is None else x for x in fine], kv_format, where, lower)
    if kv_format.nested:
        integers(store["coarse"], batch)[...] = coarse
    lengths += counts


def turned(values, spec, x, first):
    """Return rows turned by their positions, if the kernel does so."""
    of_call = values["rope"]
    if not spec.rope:
        assert not any(of_call[name] for name in ("cos", "sin", "positions"))
        return x
    batch, _, count, _ = x.shape
    sizes = (int(of_call["num_positions"]), int(of_call["pairs"]))
    cos, sin = (floats(of_call[name], sizes) for name in ("cos", "sin"))
    positions = np.maximum(first[:, None] + np.arange(count), 0)
    if of_call["positions"] and spec_is_packed(spec):
        of_rows = compact(of_call["positions"], (int(values["seqlen"]),), "<i4")
        positions = by_sequence(values, of_rows[None, None, :, None])[:, 0, :, 0]
    elif of_call["positions"]:
        positions = compact(of_call["positions"], (batch, count), "<i4")
    return rope(x, cos, sin, positions, interleaved=bool(of_call["interleaved"]))


def spec_is_packed(spec):
    """Whether tokens lie end to end; those of queries never do."""
    return getattr(spec, "packed", False)


def spans_of(values):
    """Return first row, number of rows and part of each sequence of the cache."""
    packed, batch = values["packed"], int(values["store"]["batch"])
    parts = integers(packed["parts"], batch) if packed["parts"] else np.arange(batch)
    bounds = integers(packed["bounds"], max(*parts, 0) + 2)
    assert not values["counts"]
    spans = []
    for part in parts.tolist():
        first, end = bounds[part : part + 2].tolist() if part >= 0 else (0, 0)
        is_right = 0 <= first <= end <= values["seqlen"]
        spans.append((first, end - first if is_right else -1, part))
    return spans


def check_shares(values, lengths):
    """Hold the shares of CTAs to what they have to be: each unit with new tokens is in one."""
    share_units = 2
    wanted, found = set(), []
    for b, (first, count, part) in enumerate(spans_of(values)):
        if not count:
            continue
        begin = int(lengths[b]) // UNIT_TOKENS
        wanted |= {(b, u) for u in range(begin, -(-int(lengths[b] + count) // UNIT_TOKENS))}
        most = (count + 2 * UNIT_TOKENS - 2) // UNIT_TOKENS
        for ahead in range(-(-most // share_units)):
            share = first // (share_units * UNIT_TOKENS) + 2 * part + ahead
            assert 0 <= share < values["packed"]["shares"]
            found.append((share, b, begin + share_units * ahead))
    assert len({share for share, *_ in found}) == len(found)
    units = [(b, unit + i) for _, b, unit in found for i in range(share_units)]
    assert len(set(units)) == len(units)
    assert wanted <= set(units)


def by_sequence(values, rows):
    """Return rows [1, head, total, channel] by sequences; what kernels must not read is NaN."""
    spans = spans_of(values)
    most = max(count for _, count, _ in spans)
    shape = (len(spans), rows.shape[1], most, rows.shape[3])
    apart = np.full(shape, np.nan if rows.dtype.kind == "f" else 0, rows.dtype)
    for b, (first, count, _) in enumerate(spans):
        apart[b, :, :count] = rows[0, :, first : first + count]
    return apart


def lacks_room(values, seqlen):
    counts, limits = counts_of(values), integers(values["limits"], len(lengths_of(values)))
    ends = lengths_of(values) + counts
    return ((counts < 0) | (counts > seqlen) | (ends > limits)).any()


def bare_of(values):
    store = values["store"]
    return integers(store["bare"], int(store["batch"])) if store["bare"] else None


def coarse_after(store, lengths, ends):
    coarse = integers(store["coarse"], len(lengths))
    kept = np.minimum(coarse, -(-lengths // UNIT_TOKENS))
    newest = -(-ends // UNIT_TOKENS) - store["recent_units"]
    return np.maximum(np.maximum(kept, newest), store["first_units"])


def fine_unit_of(store, kv_format, b, unit, coarse):
    """Return the bytes of all heads of the lower halves of a unit, None if it has none."""
    first, recent = int(store["first_units"]), int(store["recent_units"])
    if first <= unit < coarse:
        return None
    place = unit if unit < first else first + (unit - first) % recent
    shape = (int(store["batch"]), int(store["num_kv_heads"]), first + recent, kv_format.unit_bytes)
    return compact(store["fine"], shape, "|u1")[b, :, place]


def put_tokens(units, kv_format, where, new):
    """Change the units that the tokens lie in, and nothing of other tokens."""
    first = where.start // UNIT_TOKENS
    inside = slice(where.start - first * UNIT_TOKENS, where.stop - first * UNIT_TOKENS)
    both = unpack_units(np.stack(units, axis=1)[None], kv_format)
    for old, x in zip(both, new, strict=True):
        old.codes[:, :, inside], old.scale[:, :, inside] = x.codes, x.scale
        if x.zero is not None:
            old.zero[:, :, inside] = x.zero
    for unit, changed in zip(units, pack_units(*both, kv_format)[0].swapaxes(0, 1), strict=True):
        unit[...] = changed


def unit_of(store, kv_format, b, unit):
    """Return the bytes of all heads of a unit of a sequence, [head, byte]."""
    page, in_page = b, unit
    if store["pages"]:
        shape = (int(store["batch"]), int(store["pages_per_sequence"]))
        table = compact(store["pages"], shape, "<i4")
        page, in_page = table[b, unit // store["page_units"]], unit % int(store["page_units"])
    assert 0 <= in_page < store["page_units"]
    head_stride = int(store["head_stride"])
    address = int(store["units"]) + int(page) * int(store["page_stride"])
    heads = compact(address, (int(store["num_kv_heads"]), head_stride), "|u1")
    return heads[:, in_page * kv_format.unit_bytes :][:, : kv_format.unit_bytes]


def tokens(values, spec, name, head_dim):
    store = values["store"]
    operand = {f"stride_{axis}": values[f"{name}_stride_{axis}"] for axis in AXES}
    operand |= {"x": values[name], "seqlen": values["seqlen"], "num_heads": store["num_kv_heads"]}
    is_packed = spec_is_packed(spec)
    operand["heads"] = (1 if is_packed else store["batch"]) * store["num_kv_heads"]
    rows = source(operand, spec, head_dim)
    return by_sequence(values, rows) if is_packed else rows


AXES = ("batch", "head", "token")


def k_offset(values, shape):
    return floats(values["store"]["k_offset"], (*shape[:2], shape[3]))


def lengths_of(values):
    return integers(values["store"]["lengths"], int(values["store"]["batch"]))


def counts_of(values):
    batch = int(values["store"]["batch"])
    if values["packed"]["bounds"]:
        return np.array([count for _, count, _ in spans_of(values)], np.int32)
    if not values["counts"]:
        return np.full(batch, values["seqlen"])
    return integers(values["counts"], batch)


def integers(address, n):
    return compact(address, (n,), "<i4")
