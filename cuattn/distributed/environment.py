"""`from_environment`: the group of the processes that a launcher has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np

from ..arrays.device import gpu_available
from ..arrays.view import cupy_module
from ..common.public import naming_keywords
from ..errors import ArgumentError, UnsupportedError
from .group import Group, check_timeout
from .mpi import MPIGroup
from .nccl import Control, NCCLGroup, nccl_module
from .pytorch_group import TorchGroup
from .store import StoreControl
from .virtual import single

__all__ = ["Transport", "from_environment"]

Transport: TypeAlias = Literal["nccl", "mpi", "torch"] | None
TRANSPORTS = (None, "nccl", "mpi", "torch")

# What launchers of MPI tell each process: MPICH and those of its family, Open MPI.
_OF_MPI = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")


@naming_keywords
def from_environment(transport: Transport = None, *, timeout: float = 300.0) -> Group:
    """Return the group of all processes that ``mpiexec`` or ``torchrun`` has started.

    With a GPU for each process CuPy's current one becomes that of the process's number on its
    computer, before the group is made.

    Parameters
    ----------
    transport : {None, "nccl", "mpi", "torch"}
        "nccl": `NCCLGroup`. "mpi": `MPIGroup`. "torch": `TorchGroup`; ``torch.distributed`` is
        initialized if it is not. By default PyTorch's if it is initialized; NCCL where each process
        has a GPU of its own and CuPy finds NCCL; else MPI if its launcher has started the
        processes, or else PyTorch's. A process by itself is a group of one rank.
    timeout : float
        As for `Group`.

    Raises
    ------
    ArgumentError
        For another transport.
    UnsupportedError
        If a module that the transport needs is missing.
    """
    if transport not in TRANSPORTS:
        raise ArgumentError("transport", transport, f"one of {TRANSPORTS}")
    check_timeout(timeout)
    of_mpi = any(name in os.environ for name in _OF_MPI)
    of_torch = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if transport is None and not (of_mpi or of_torch or _torch_is_initialized()):
        return single(timeout)
    local = _local_rank(os.environ)
    has_own = gpu_available() and _take_gpu(local)
    if transport is None:
        transport = _chosen(has_own, of_mpi)
    if transport == "mpi":
        return MPIGroup(timeout=timeout)
    if transport == "torch":
        _initialize_torch(has_own)
        return TorchGroup(timeout=timeout)
    return _nccl_group(of_mpi, timeout)


def _chosen(has_gpu: bool, of_mpi: bool) -> Transport:
    if _torch_is_initialized():
        return "torch"
    if has_gpu:
        try:
            nccl_module()
        except UnsupportedError:
            pass
        else:
            return "nccl"
    return "mpi" if of_mpi else "torch"


def _nccl_group(of_mpi: bool, timeout: float) -> Group:
    """Tell all ranks of an id of rank 0's, by what the launcher has left to do so."""
    nccl = nccl_module()
    if of_mpi:
        by_mpi = MPIGroup(timeout=timeout)
        return _nccl_of(nccl, by_mpi.rank, by_mpi.size, by_mpi, timeout)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if find_spec("torch") is not None:
        import torch.distributed as dist

        store, _, _ = next(dist.rendezvous("env://"))
        control = StoreControl(dist.PrefixStore("cuattn", store), rank, size, timeout)
        return _nccl_of(nccl, rank, size, control, timeout)
    return _nccl_by_cupys_store(nccl, rank, size, timeout)


def _nccl_of(nccl: Any, rank: int, size: int, control: Control, timeout: float) -> Group:
    own = bytes(nccl.get_unique_id()) if rank == 0 else b"-"
    unique_id = control.gather_bytes(own)[0]
    return NCCLGroup(rank, size, unique_id, control=control, timeout=timeout)


def _nccl_by_cupys_store(nccl: Any, rank: int, size: int, timeout: float) -> Group:
    """Start NCCL with the store that CuPy has for that, and tell of an id through it."""
    from cupyx.distributed import init_process_group

    cupy = cupy_module()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    backend = init_process_group(size, rank, backend="nccl", host=host, port=port)
    unique_id = bytes(nccl.get_unique_id())  # of the others only as long as rank 0's
    told = cupy.asarray(np.frombuffer(unique_id, np.uint8))
    backend.broadcast(told, 0)
    group = NCCLGroup(rank, size, told.get().tobytes(), timeout=timeout)
    group.keep(backend)
    return group


def _initialize_torch(has_gpu: bool) -> None:
    if find_spec("torch") is None:
        raise UnsupportedError(
            "neither MPI's launcher nor PyTorch: start with mpiexec, or install torch"
        )
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if has_gpu:
            torch.cuda.set_device(cupy_module().cuda.runtime.getDevice())
        dist.init_process_group("nccl" if has_gpu else "gloo")


def _torch_is_initialized() -> bool:
    torch: Any = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    return bool(dist is not None and dist.is_available() and dist.is_initialized())


def _local_rank(environment: Mapping[str, str]) -> int | None:
    found = (environment[name] for name in _LOCAL_RANKS if name in environment)
    return next(map(int, found), None)


def _take_gpu(local: int | None) -> bool:
    """Make a process's own GPU the current one, and say whether it has one."""
    runtime = cupy_module().cuda.runtime
    count = runtime.getDeviceCount()
    if local is None:
        return False  # who shares a GPU with whom is not known
    runtime.setDevice(local % count)
    size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    size = size or os.environ.get("MPI_LOCALNRANKS")
    return local < count and (size is None or int(size) <= count)
