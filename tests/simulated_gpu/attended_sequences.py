"""Attention kernels that read lengths from memory: the plain ones run head by head.

As in `sequences`, nothing here knows how kernels find their addresses.
"""

import ctypes
from dataclasses import replace

import numpy as np

from cuattn.specs.attention import Scope

from .attention import ByAddress, attend, numbers
from .memory import BLOCK, STORAGE, compact, delivered, floats, memory
from .score_rules import FLOATS
from .sequences import places
from .tensor_maps import mapped


def list_units(values, spec, grid):
    p = numbers(values)
    assert grid == (spec.ctas(p["batch"]),)
    of_q = p["cu_seqlens_q"], 0, p["batch"], 1, p["max_seqlen_q"]
    of_k = p["cu_seqlens_k"], p["seqused_k"], p["batch"], 1, p["max_seqlen_kv"]
    counts = [-(-x.length // spec.rows) for x in places(*of_q)]
    keys = [x.length for x in places(*of_k)]
    order = sorted(range(p["batch"]), key=lambda b: (-keys[b], b))
    found = []
    for b in order:
        found += [(b, len(found))] * counts[b]
    assert len(found) <= p["most"] == spec.most(p["batch"], p["total_q"])
    compact(p["units"], (len(found), 2), "<i4")[...] = np.reshape(found, (-1, 2))
    ctypes.c_int32.from_address(p["unit_count"]).value = len(found)
    if p["next_item"]:
        ctypes.c_uint32.from_address(p["next_item"]).value = 0


def attention_mma(values, spec, grid):
    p = numbers(values)
    group = p["heads_per_kv"]
    ctas = p["row_blocks"] * group * spec.v_parts
    assert grid[:2] == (ctas, p["num_q_heads"] // group)
    attend_each(p, spec, grid[2], ByAddress)


def attention_wgmma(values, spec, grid):
    p = numbers(values["attention"])
    maps = {name: mapped(bytes(values[f"{name}_map"])) for name in "qkv"}
    counted = int(values["next_item"])
    assert not counted or ctypes.c_uint32.from_address(counted).value == 0
    if not p["cu_seqlens_q"]:
        assert not values["units"]
        batch = maps["q"].x.shape[0]
    else:
        batch = listed(values, p)
    attend_each(p, spec, batch, lambda *args: ByBoxes(*args, maps))


def listed(values, p):
    """Return how many sequences there are, which all have their rows on the list."""
    count = ctypes.c_int32.from_address(int(values["unit_count"])).value
    units = compact(int(values["units"]), (count, 2), "<i4")
    assert count * p["num_q_heads"] <= values["items"]
    for b, first in units:
        assert (units[first : first + 1, 0] == b).all()
    return int(units[:, 0].max(initial=-1)) + 1


class ByBoxes(ByAddress):
    """Operands of one head of a sequence, read through tensor maps of all."""

    def __init__(self, p, spec, batch, maps):
        super().__init__(p, spec, batch)
        self.maps = maps

    def codes(self, name):
        return self._rows(name, self.spec.qk)

    def values(self, name, kind):
        return self._rows(name, kind)

    def v_codes(self, blocks):
        parts = self.spec.head_dim_v // 32
        v = self.maps["v"].x.view(STORAGE[self.spec.pv]).swapaxes(1, 2)
        v = v.reshape(-1, self.spec.head_dim_v, BLOCK)
        assert v.shape[0] * parts == self.maps["v"].x.shape[0]
        first = self.p["boxes"]["v_block"]
        return v[None, None, first : first + blocks]

    def _rows(self, name, kind):
        boxes = self.p["boxes"]
        batch, head, first = boxes[name]
        found = self.maps[name].x[batch, head, first:]
        shape = self.q_shape if name == "q" else self.kv_shape
        count = shape[2]
        if name == "k" and self.spec.k_scope is Scope.sorted:
            count = -(-count // BLOCK) * BLOCK
        assert len(found) >= count
        return found[None, None, :count].view(STORAGE[kind])


def attend_each(p, spec, batch, source):
    plain = replace(spec, rules=replace(spec.rules, varlen=False))
    heads, group = p["num_q_heads"], p["heads_per_kv"]
    rows = places(p["cu_seqlens_q"], 0, batch, heads, p["max_seqlen_q"])
    for q in rows:
        every = places(p["cu_seqlens_k"], p["seqused_k"], batch, heads // group, p["max_seqlen_kv"])
        k = next(x for x in every if (x.batch, x.head) == (q.batch, q.head // group))
        if q.length:
            own = arguments(p, plain, q, k)
            if k.length:
                attend(own, plain, 1, source(own, plain, 1))
            else:
                write_nothing_seen(own, plain)


def arguments(p, spec, q, k):
    packed = p["cu_seqlens_q"]
    own = p | {"num_q_heads": 1, "heads_per_kv": 1, "seqlen_q": q.length, "seqlen_kv": k.length}
    own |= {"user_batch": p["user_batch"] + q.batch, "user_head": p["user_head"] + q.head}
    own["row_blocks"] = -(-q.length // spec.rows)
    row, _ = q.stored(p["q_pitch"], packed)
    _, block = k.stored(p["kv_pitch"], packed)
    for name in "qkvo":
        at = k if name in "kv" else q
        steps = [p[f"{name}_stride_{axis}"] for axis in ("batch", "head", "row")]
        token = at.first
        if name == "k" and spec.qk.coded:
            token = at.block * BLOCK
        if name == "v" and spec.pv.coded:
            token = at.block
        unit = spec.out.nbytes if name == "o" else 1
        own[name] = p[name] + unit * (at.batch * steps[0] + at.head * steps[1] + token * steps[2])
    per_block = {Scope.token: BLOCK, Scope.thread: 8, Scope.sorted: 16}
    of_k = block * per_block.get(spec.k_scope, BLOCK // spec.block_kv)
    if spec.k_scope is Scope.block and not packed:
        of_k = k.all_heads * -(-p["kv_pitch"] // spec.block_kv)
    of_v = {Scope.token: 3 * BLOCK, Scope.sorted: 48, Scope.block: 1}
    at_v = block * of_v[spec.v_scope] if spec.v_scope in of_v else k.all_heads * spec.channels_v
    shifts = {
        "lse": row,
        "lse_shift": row,
        "q_scale": row,
        "k_scale": of_k,
        "v_scale": at_v,
        "v_mean": k.all_heads * p["head_dim_v"],
    }
    own |= {name: p[name] + 4 * shift for name, shift in shifts.items() if p[name]}
    if p["order"]:
        own["order"] = p["order"] + BLOCK * block
    if p["sinks"]:
        size = 4 if p["sinks_type"] == 0 else 2
        own["sinks"] = p["sinks"] + size * q.head * p["sinks_stride_head"]
    if p["alibi_slopes"]:
        size = 4 if p["alibi_type"] == 0 else 2
        at = q.batch * p["alibi_stride_batch"] + q.head * p["alibi_stride_head"]
        own["alibi_slopes"] = p["alibi_slopes"] + size * at
    if p["attn_mask"]:
        kind = spec.rules.attn_mask
        size = FLOATS[kind].nbytes if kind in FLOATS else 4
        for name, short, unit in (("attn_mask", "mask", size), ("mask_map", "map", 4)):
            steps = [p[f"{short}_stride_{axis}"] for axis in ("batch", "head")]
            own[name] = p[name] + unit * (q.batch * steps[0] + q.head * steps[1])
        own["slot_keys"] = p["max_seqlen_kv"]
    if p["delta"]:
        slots = -(-p["max_seqlen_q"] // BLOCK), -(-p["max_seqlen_kv"] // BLOCK) * BLOCK
        given = floats(p["delta"] + 4 * q.all_heads * slots[0] * slots[1], slots)
        ends = -(-q.length // BLOCK), -(-k.length // BLOCK) * BLOCK
        own["deltas"] = np.ascontiguousarray(given[: ends[0], : ends[1]])
        own["delta"] = own["deltas"].ctypes.data
    of_batch = 0 if packed else q.batch
    own["boxes"] = {
        "q": (of_batch, q.head, q.first),
        "k": (of_batch, k.head, k.block * BLOCK if spec.qk.coded else k.first),
        "v": (of_batch, k.head, k.first),
        "v_block": block,
    }
    return own


def write_nothing_seen(p, spec):
    shape = (p["seqlen_q"], p["head_dim_v"])
    steps = (p["o_stride_row"] * spec.out.nbytes, spec.out.nbytes)
    zeros = delivered(np.zeros(shape), spec.out)
    memory(p["o"], shape, steps, STORAGE[spec.out])[...] = zeros
    if p["lse"]:
        sink = -np.inf
        if p["sinks"]:
            assert p["sinks_type"] == 0
            sink = floats(p["sinks"], (1,))[0]
        floats(p["lse"], (p["seqlen_q"],))[...] = sink
