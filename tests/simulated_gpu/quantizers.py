"""The kernels that quantize, as the simulated GPU runs them."""

import numpy as np

from cuattn.reference.layout import LOG2_BIAS, in_slots, transpose_v
from cuattn.reference.quantize import quantize
from cuattn.reference.rounding import e4m3_bits
from cuattn.reference.smoothing import SAMPLE
from cuattn.spec import Scope, Type

from .memory import BLOCK, STORAGE, compact, floats, memory, narrowed, widened


def source(operand, spec, head_dim):
    """Return an operand of StatsParams or QuantizeParams [batch, head, token, head_dim]."""
    batch = operand["heads"] // operand["num_heads"]
    shape = (batch, operand["num_heads"], operand["seqlen"], head_dim)
    itemsize = spec.input.nbytes
    steps = [int(operand[f"stride_{axis}"]) * itemsize for axis in ("batch", "head", "token")]
    if spec.aligned:
        starts = [operand["x"], *(step for step, n in zip(steps, shape, strict=False) if n > 1)]
        assert not any(int(start) % 16 for start in starts)
    x = memory(operand["x"], shape, (*steps, itemsize), STORAGE[spec.input])
    return widened(x, spec.input)


def stats(values, spec, grid):
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        assert spec.qk_range or name != "q" or not operand["heads"]
        if operand["heads"]:
            assert operand["chunks"] == spec.chunks(name, int(operand["seqlen"]))
            assert operand["chunk"] == spec.chunk
            ctas += operand["heads"] * operand["chunks"]
            if operand["chunks"] == 1:
                moments(name, operand, spec, int(values["head_dim"]))
            else:
                shape = (operand["heads"], operand["chunks"], spec.kinds(name), spec.head_dim)
                # What the next kernel reads back: that this one has written all of it.
                floats(operand["partial"], shape)[...] = 1.0
    assert grid == (ctas,)
    stats.latest = spec


def stats_finish(values, spec, grid):
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        if operand["heads"] and operand["chunks"] > 1:
            ctas += operand["heads"]
            shape = (operand["heads"], operand["chunks"], stats.latest.kinds(name), spec.head_dim)
            assert (floats(operand["partial"], shape) == 1.0).all()
            moments(name, operand, stats.latest, int(values["head_dim"]))
    assert grid == (ctas,)


def moments(name, operand, spec, head_dim):
    x = source(operand, spec, head_dim).astype(np.float64)
    shape = (operand["heads"], head_dim)
    n = x.shape[2]
    sampled = {"q": False, "k": spec.k_sample, "v": spec.v_sample}[name]
    sample = [i * n // SAMPLE for i in range(SAMPLE)] if sampled and n > SAMPLE else slice(None)
    mean = x[:, :, sample].mean(axis=2).astype(np.float32)
    floats(operand["mean"], shape)[...] = np.nan_to_num(mean, nan=0, posinf=0, neginf=0).reshape(
        shape
    )
    if spec.ranges(name):
        floats(operand["low"], shape)[...] = x.min(axis=2).reshape(shape)
        floats(operand["high"], shape)[...] = x.max(axis=2).reshape(shape)


def quantize_operands(values, spec, grid):
    head_dim = int(values["head_dim"])
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        if not operand["heads"]:
            continue
        assert operand["tiles"] == spec.tiles(name, int(operand["seqlen"]))
        ctas += operand["heads"] * operand["tiles"]
        x = source(operand, spec, head_dim)
        kind = getattr(spec, name)
        if not kind.coded:
            padded = compact(operand["out"], (*x.shape[:3], spec.head_dim), STORAGE[kind])
            padded[...] = 0
            padded[..., :head_dim] = narrowed(x.astype(np.float64), kind)
            continue
        vector = None
        if (name == "k" and spec.k_smooth) or (name == "v" and spec.v_smooth):
            vector = floats(operand["vector"], (*x.shape[:2], head_dim)).copy()
        store_codes(name, operand, values, spec, x, vector)
        if name == "q" and values["lse_shift"] and spec.k_smooth:
            group = int(values["heads_per_kv"])
            shape = (x.shape[0], x.shape[1] // group, head_dim)
            vectors = np.repeat(floats(operand["vector"], shape), group, axis=1)
            shift = values["softmax_scale"] * np.einsum("bhnd,bhd->bhn", x, vectors, dtype=float)
            floats(values["lse_shift"], x.shape[:3])[...] = shift
    assert grid == (ctas,)


def store_codes(name, operand, values, spec, x, vector):
    scope = {"q": Scope.token, "k": spec.k_scope, "v": spec.v_scope}[name].value
    if spec.v_per_tensor if name == "v" else spec.qk_per_tensor:
        scope = "tensor"
    kind = getattr(spec, name)
    to = "fp8" if kind is Type.e4m3 else "int8"
    result = quantize(x, scope=scope, block=spec.k_block, vector=vector, to=to)
    codes = e4m3_bits(result.codes) if kind is Type.e4m3 else result.codes
    batch, heads, tokens, head_dim = x.shape
    if name == "v":
        stored = transpose_v(codes)
        compact(operand["out"], stored.shape, STORAGE[kind])[...] = stored
    else:
        padded = compact(operand["out"], (*x.shape[:3], spec.head_dim), STORAGE[kind])
        padded[...] = 0
        padded[..., :head_dim] = codes
    if scope in ("channel", "tensor"):
        shape = (batch * heads, head_dim)
        for which, extreme in (("low", x.min(axis=2)), ("high", x.max(axis=2))):
            np.testing.assert_array_equal(
                floats(operand[which], shape), extreme.reshape(shape).astype(np.float32)
            )
    if name != "v" and scope == "tensor":
        scales = tokens if name == "q" else -(-tokens // spec.k_block)
        floats(operand["scale"], (batch, heads, scales))[...] = result.scale[..., None]
    elif name == "v" and scope != "token":
        scale = floats(operand["scale"], (batch, heads, spec.head_dim))
        scale[...] = 2.0**-100 / 127
        scale[..., :head_dim] = result.scale if scope == "channel" else result.scale[..., None]
    elif name != "q" and scope == "token":
        blocks = -(-x.shape[2] // BLOCK)
        padded = np.ones((batch, heads, blocks * BLOCK), np.float32)
        padded[..., : x.shape[2]] = result.scale
        if name == "v":
            one = in_slots(padded).reshape(batch, heads, blocks, BLOCK)
            padded = np.stack([one, LOG2_BIAS + np.log2(one), 1 / one], axis=3)
        else:
            padded = in_slots(padded)
        floats(operand["scale"], padded.shape)[...] = padded
    else:
        floats(operand["scale"], result.scale.shape)[...] = result.scale
