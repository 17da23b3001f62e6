"""Attention over several GPUs: rings, Ulysses and gathering, with codes on the wire.

May import `errors`, `common`, `scheme`, `presets`, `reference`, `specs`, `arrays`, `operands`,
`quantize`, `attention`, `merging` and `kv`.
"""
from __future__ import annotations

from .group import Group
from .placement import positions, shard, unshard
from .ring import ring_attention
from .virtual import VirtualGroup, run_virtual

__all__ = [
    "Group",
    "VirtualGroup",
    "positions",
    "ring_attention",
    "run_virtual",
    "shard",
    "unshard",
]
