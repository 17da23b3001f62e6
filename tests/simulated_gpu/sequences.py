"""Kernels that read lengths from memory: the simulated GPU runs the plain ones, head by head.

Written from the comments of kernels_cu/sequences.cuh and of the parameter structs: nothing here
knows how kernels find their addresses.
"""

import ctypes
from dataclasses import replace
from typing import NamedTuple

from cuattn.specs.attention import Scope

from .memory import BLOCK, compact
from .quantizers import moments, quantize_operands


class Place(NamedTuple):
    """One head of one sequence: where its tokens, and its blocks, are among those of its array."""

    batch: int
    head: int
    first: int
    length: int
    block: int
    all_heads: int  # its number among the heads of all batches

    def stored(self, pitch, packed):
        """Return the token of all heads at which it begins, and the same in whole blocks."""
        blocks = -(-pitch // BLOCK)
        head = self.head if packed else self.all_heads
        return head * pitch + self.first, head * blocks + self.block


def places(bounds, used, batch, heads, most):
    """Yield the heads of all sequences, those of a sequence one after the other."""
    cu = compact(bounds, (batch + 1,), "<i4") if bounds else None
    counts = compact(used, (batch,), "<i4") if used else None
    for b in range(batch):
        first, length = (0, most) if cu is None else (int(cu[b]), min(int(cu[b + 1] - cu[b]), most))
        length = length if counts is None else min(length, int(counts[b]))
        block = 0 if cu is None else first // BLOCK + b
        for h in range(heads):
            yield Place(b, h, first, length, block, b * heads + h)


def places_of(operand):
    names = ("cu_seqlens", "seqused", "heads", "num_heads", "seqlen")
    bounds, used, all_heads, heads, most = (int(operand[name]) for name in names)
    return places(bounds, used, all_heads // heads, heads, most) if all_heads else ()


def fields(struct):
    return {name: struct[name] for name in struct.dtype.names}


def one_head(operand, spec, at, head_dim):
    """Return an operand of statistics or of the quantizer that is one head of one sequence."""
    steps = [int(operand[f"stride_{axis}"]) for axis in ("batch", "head", "token")]
    element = at.batch * steps[0] + at.head * steps[1] + at.first * steps[2]
    found = fields(operand) | {"heads": 1, "num_heads": 1, "seqlen": at.length}
    found["x"] = int(operand["x"]) + element * spec.input.nbytes
    for name in ("mean", "vector", "low", "high"):
        if found.get(name):
            found[name] = int(found[name]) + 4 * at.all_heads * head_dim
    return found


def stats(values, spec, grid):
    head_dim = int(values["head_dim"])
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        ctas += int(operand["heads"]) * int(operand["chunks"])
        assert not operand["heads"] or operand["most"] == spec.most(name)
        for at in places_of(operand):
            if at.length:
                moments(name, one_head(operand, spec, at, head_dim), spec, head_dim)
    assert grid == (ctas,)


def quantize(values, spec, grid):
    plain = replace(spec, varlen=False)
    dims = {
        "q": int(values["head_dim"]),
        "k": int(values["head_dim"]),
        "v": int(values["head_dim_v"]),
    }
    sorts = spec.k_scope is Scope.sorted
    if values["next_item"]:
        ctypes.c_uint32.from_address(int(values["next_item"])).value = 0
    for names in ("q", "kv") if sorts else ("q", "k", "v"):
        for at in places_of(values[names[0]]):
            if not at.length:
                continue
            part = fields(values) | {name: {"heads": 0} for name in "qkv"} | {"next_item": 0}
            for name in names:
                part[name] = stored_head(name, values[name], plain, at, dims[name])
            rows, blocks = at.stored(int(values[names[0]]["pitch"]), part[names[0]]["cu_seqlens"])
            if names == "q" and values["lse_shift"]:
                group = int(values["heads_per_kv"])
                part["lse_shift"] = int(values["lse_shift"]) + 4 * rows
                kv_head = at.all_heads // group
                part["k_vector"] = int(values["k_vector"]) + 4 * kv_head * dims["k"]
                part["heads_per_kv"] = 1
            if sorts and names != "q":
                part["order"] = int(values["order"]) + BLOCK * blocks
            tiles = sum(int(part[name]["tiles"]) for name in names[:1])
            quantize_operands(part, plain, (tiles,))
    tiled = ("q", "k") if sorts else ("q", "k", "v")
    assert grid == (sum(int(values[x]["heads"]) * int(values[x]["tiles"]) for x in tiled),)


def stored_head(name, operand, spec, at, head_dim):
    found = one_head(operand, spec, at, head_dim)
    kind, pitch = getattr(spec, name), int(operand["pitch"])
    row, block = at.stored(pitch, operand["cu_seqlens"])
    channels = spec.head_dim_v if name == "v" else spec.head_dim
    in_blocks = kind.coded and name != "q" and (operand["cu_seqlens"] or name == "v")
    in_blocks = in_blocks or (kind.coded and name != "q" and spec.k_scope is Scope.sorted)
    found["tiles"] = spec.tiles(name, at.length)
    if name == "q" and operand["vector"]:  # one of each block of rows
        blocks = -(-int(operand["max_seqlen"]) // BLOCK)
        found["vector"] = int(operand["vector"]) + 4 * at.all_heads * blocks * head_dim
    found["out"] = (
        int(operand["out"]) + (block * BLOCK if in_blocks else row) * channels * kind.bits // 8
    )
    if not kind.coded:
        return found
    if name == "q":
        at_scale = row
    elif name == "k":
        per_block = {Scope.token: BLOCK, Scope.thread: 8, Scope.sorted: 16}
        at_scale = block * per_block.get(spec.k_stored, BLOCK // spec.k_block)
        if spec.k_stored is Scope.block and not operand["cu_seqlens"]:
            at_scale = at.all_heads * -(-pitch // spec.k_block)
    else:
        of_block = {Scope.token: 3 * BLOCK, Scope.sorted: 48, Scope.block: 1}
        at_scale = block * of_block.get(spec.v_scope, 0)
        if spec.v_scope not in of_block:
            at_scale = at.all_heads * channels
    found["scale"] = int(operand["scale"]) + 4 * at_scale
    return found
