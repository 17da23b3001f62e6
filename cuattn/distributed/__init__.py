"""Attention over several GPUs: rings, Ulysses and gathering, with codes on the wire.

May import `errors`, `common`, `scheme`, `presets`, `reference`, `specs`, `arrays`, `operands`,
`quantize`, `attention`, `merging` and `kv`.
"""

from __future__ import annotations

from .environment import from_environment
from .gathered import all_gather_attention
from .cache import DistributedKVCache
from .group import Group, nodes
from .mpi import MPIGroup
from .nccl import NCCLGroup
from .placement import positions, shard, unshard
from .pytorch_group import TorchGroup
from .ring import ring_attention
from .ulysses import ulysses_attention, usp_attention
from .virtual import VirtualGroup, run_virtual

__all__ = [
    "DistributedKVCache",
    "Group",
    "MPIGroup",
    "NCCLGroup",
    "TorchGroup",
    "VirtualGroup",
    "all_gather_attention",
    "from_environment",
    "nodes",
    "positions",
    "ring_attention",
    "run_virtual",
    "shard",
    "ulysses_attention",
    "unshard",
    "usp_attention",
]
