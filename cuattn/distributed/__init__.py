"""Attention over several GPUs: rings, Ulysses and gathering, with codes on the wire.

May import `errors`, `common`, `scheme`, `presets`, `reference`, `specs`, `arrays`, `operands`,
`compile`, `quantize`, `attention`, `merging`, `kv` and `records`.
"""

from __future__ import annotations

from ..errors import DistributedError, MismatchError, RankTimeoutError
from .cache import DistributedKVCache
from .environment import from_environment
from .gathered import all_gather_attention
from .group import Group, nodes
from .mpi import MPIGroup
from .muted import MutedGroup
from .nccl import NCCLGroup
from .placement import positions, shard, unshard
from .pytorch_group import TorchGroup
from .rates import NVLINK, Link
from .ring import ring_attention
from .scaling import ParallelPlan, nvlink, plan_parallel
from .ulysses import ulysses_attention, usp_attention
from .virtual import VirtualGroup, run_virtual

__all__ = [
    "NVLINK",
    "DistributedError",
    "DistributedKVCache",
    "Group",
    "Link",
    "MPIGroup",
    "MismatchError",
    "MutedGroup",
    "NCCLGroup",
    "ParallelPlan",
    "RankTimeoutError",
    "TorchGroup",
    "VirtualGroup",
    "all_gather_attention",
    "from_environment",
    "nodes",
    "nvlink",
    "plan_parallel",
    "positions",
    "ring_attention",
    "run_virtual",
    "shard",
    "ulysses_attention",
    "unshard",
    "usp_attention",
]
