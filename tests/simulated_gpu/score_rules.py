"""Windows, caps, slopes, masks and sinks of attention kernels, as the simulated GPU reads them."""

import numpy as np

from cuattn.reference.mods import bound
from cuattn.specs.attention import Type
from cuattn.specs.mask_map import MAP_TILE, bit_words, map_words
from cuattn.specs.rules import MaskKind

from .memory import STORAGE, compact, memory, widened

WORD = 32
BOOL = "|u1"
FLOATS = {MaskKind.fp32: Type.fp32, MaskKind.fp16: Type.fp16, MaskKind.bf16: Type.bf16}
# What expressions say, by their text: objects with a function of NumPy.
EXPRESSIONS = {}
# AttentionParams::sinks_type
VECTORS = (Type.fp32, Type.fp16, Type.bf16)
ALL = 2**31 - 1


def mask_map(values, spec, grid):
    """Do what kernels_cu/mask_map.cu does."""
    p = {name: values[name].item() for name in values.dtype.names}
    tiles, words = p["tiles"], p["map_words"]
    assert (tiles, words) == (-(-p["rows"] // MAP_TILE), map_words(p["keys"]))
    assert p["bit_words"] == bit_words(p["keys"])
    batch, rest = divmod(grid[0], p["heads"] * tiles * words)
    assert rest == 0
    shape = (batch, p["heads"], p["rows"], p["keys"])
    steps = [p[f"stride_{axis}"] for axis in ("batch", "head", "row", "key")]
    assert spec.last == (p["lengths"] != 0)
    if spec.last:
        given = elements(p["mask"], (*shape[:3], p["columns"]), steps, spec.input)
        lengths = compact(p["lengths"], (batch,), "<i4")
        x = np.stack([of_last_keys(given[b], int(n), p["keys"]) for b, n in enumerate(lengths)])
    else:
        assert p["columns"] == p["keys"]
        x = elements(p["mask"], shape, steps, spec.input)
    if spec.input is MaskKind.bits:
        padded = np.zeros((*shape[:3], p["bit_words"] * WORD), bool)
        padded[..., : p["keys"]] = x
        compact(p["bits"], (*shape[:3], p["bit_words"]), "<u4")[...] = packed(padded)
    compact(p["map"], (*shape[:2], tiles, 2, words), "<u4")[...] = map_of(x)


def of_last_keys(mask, length, keys):
    """Return a mask of the last keys of a sequence as one of all; the others are seen."""
    found = np.full((*mask.shape[:-1], keys), mask.dtype == bool, mask.dtype)
    some = min(length, mask.shape[-1])
    found[..., length - some : length] = mask[..., mask.shape[-1] - some :]
    return found


def map_of(x):
    """Return words of [.., tile of rows, 2]: which tiles have keys that are seen, or only such."""
    *outer, rows, keys = x.shape
    tiles = -(-rows // MAP_TILE)
    columns = map_words(keys) * WORD
    found = np.zeros((*outer, tiles, 2, columns), bool)
    for tile in range(tiles):
        for column in range(-(-keys // MAP_TILE)):
            part = x[..., tile * MAP_TILE :, column * MAP_TILE :][..., :MAP_TILE, :MAP_TILE]
            if x.dtype == bool:
                some, nothing_added = part, part
            else:
                some, nothing_added = part != -np.inf, part == 0
            found[..., tile, 0, column] = some.any((-1, -2))
            found[..., tile, 1, column] = nothing_added.all((-1, -2))
    return packed(found)


def packed(bits):
    """Return words of 32 bits, the first of them the lowest."""
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4")


def elements(address, shape, steps, kind):
    """Return a mask in memory: booleans, or floats with -inf for what is hidden."""
    if kind is MaskKind.bits:
        return memory(address, shape, steps, BOOL) != 0
    return floats(address, shape, steps, FLOATS[kind])


def floats(address, shape, steps, kind):
    at = memory(address, shape, [step * kind.nbytes for step in steps], STORAGE[kind])
    x = widened(at, kind).astype(np.float32)
    least = {Type.fp32: np.finfo(np.float32).min, Type.fp16: -65504.0}
    x[x <= least.get(kind, -float.fromhex("0x1.fep127"))] = -np.inf
    return x


def options_of(p, spec, batch):
    """Return what the reference is told of a kernel's rules, and check the map of its mask."""
    heads, rows, keys = p["num_q_heads"], p["seqlen_q"], p["seqlen_kv"]
    rules = spec.rules
    left, right = p["window_left"], p["window_right"]
    assert rules.windowed or (left, right) in ((ALL, ALL), (ALL, 0))
    assert spec.is_causal == ((left, right) == (ALL, 0))
    found = {"is_causal": spec.is_causal}
    if rules.windowed:
        found["window_size"] = tuple(-1 if side == ALL else side for side in (left, right))
    assert rules.softcap == (p["softcap_log2"] != 0)
    if rules.softcap:
        np.testing.assert_allclose(p["inverse_softcap"] * p["softcap_log2"], 1, rtol=1e-6)
        found["softcap"] = p["softcap_log2"] * np.log(2)
    assert rules.alibi == (p["alibi_slopes"] != 0)
    if rules.alibi:
        steps = [p["alibi_stride_batch"], p["alibi_stride_head"]]
        kind = VECTORS[p["alibi_type"]]
        found["alibi_slopes"] = floats(p["alibi_slopes"], (batch, heads), steps, kind)
    if p["sinks"]:
        steps = [p["sinks_stride_head"]]
        found["sinks"] = floats(p["sinks"], (heads,), steps, VECTORS[p["sinks_type"]])
    assert rules.mapped == (p["attn_mask"] != 0) == (p["mask_map"] != 0)
    if rules.mapped:
        slot = p.get("slot_keys", keys)  # of which a sequence may use the first ones only
        found["attn_mask"] = mask_of(p, rules.attn_mask, (batch, heads, rows, slot))[..., :keys]
    for mod in (rules.score_mod, rules.mask_mod):
        if mod is not None:
            found[mod.name] = expression(p["user"], mod, p["user_batch"], p["user_head"])
    return found


def expression(values, mod, batch=0, head=0):
    """Return what an expression says, with arrays and numbers as the kernel is told them.

    It counts sequences from `batch` on, and heads from `head`.
    """
    known = EXPRESSIONS[mod.text]
    named = {}
    for (name, dtype), value in zip(mod.arrays, values[mod.first_array :], strict=False):
        shape, stored = known.arrays[name].shape, np.dtype(dtype)
        assert (value[0] % stored.itemsize, known.arrays[name].dtype) == (0, stored)
        steps = [x * stored.itemsize for x in np.cumprod((1, *shape[:0:-1]))[::-1]]
        named[name] = memory(value[0], shape, steps, stored.str).copy()
    for (name, kind), value in zip(mod.numbers, values[mod.first_number :], strict=False):
        named[name] = value[2] if kind == "int" else value[1]
    function = bound(known.reference, known.given, named)

    def called(**place):
        return function(**place | {"batch": batch + place["batch"], "head": head + place["head"]})

    return called


def mask_of(p, kind, shape):
    batch, heads, rows, keys = shape
    steps = [p[f"mask_stride_{axis}"] for axis in ("batch", "head", "row", "key")]
    if kind is MaskKind.bits:
        of_row = bit_words(keys)
        words = memory(
            p["attn_mask"], (*shape[:3], of_row), [4 * x for x in (*steps[:3], 1)], "<u4"
        )
        bits = np.ascontiguousarray(words).view(np.uint8)
        x = np.unpackbits(bits, axis=-1, bitorder="little")[..., :keys] != 0
    elif p["mask_columns"] and kind is not MaskKind.bits:
        given = elements(p["attn_mask"], (*shape[:3], p["mask_columns"]), steps, kind)
        x = of_last_keys(given, p["seqlen_kv"], keys)
    else:
        x = elements(p["attn_mask"], shape, steps, kind)
    assert p["mask_words"] == map_words(keys)
    of_map = [p[f"map_stride_{axis}"] for axis in ("batch", "head", "tile")]
    whole = (batch, heads, -(-rows // MAP_TILE), 2, p["mask_words"])
    steps = [4 * step for step in (*of_map, p["mask_words"], 1)]
    np.testing.assert_array_equal(memory(p["mask_map"], whole, steps, "<u4"), map_of(x))
    return x
