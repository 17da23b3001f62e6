"""Times of PyTorch's own context parallelism, a ring of float16, at the sizes of our rings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from cuattn.bench.cases import Case
from cuattn.records.rows import Timing

from .multi_gpu_clock import Clock
from .multi_gpu_times import HEAD_DIM, HEADS, LENGTHS

__all__ = ["NAME", "timings"]

NAME = "pytorch-context-parallel"
# What it attends with on each GPU, the fastest first; the first one that works is timed.
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION")
# Tokens of the call whose result is compared with one GPU's.
CHECKED = 1024


def timings(group: Any, is_over: Callable[[], bool]) -> Iterator[Timing]:
    """Yield rows of the case "ring" with a causal mask, whose load it balances as "zigzag" does.

    Parameters
    ----------
    group : TorchGroup
        Of NCCL.
    is_over : callable
        Asked on all ranks before each length.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cuda", (group.size,))
    clock = Clock(group, on_gpu=True)
    backends = list(BACKENDS)
    checked = False
    for own in LENGTHS:
        if is_over():
            return
        while backends:
            try:
                if not checked:
                    _check(mesh, backends[0])
                    checked = True
                seconds = _seconds(mesh, clock, own * group.size, backends[0])
            except (AttributeError, ImportError, RuntimeError, TypeError) as error:
                # The same on all ranks: nothing has been sent yet, or by all.
                print(f"{NAME} with {backends.pop(0)}: {error}"[:400], flush=True)
                continue
            case = Case.square(1, HEADS, own * group.size, HEAD_DIM, True)
            if group.rank == 0:
                print(
                    f"{NAME} {backends[0]} {own} tokens a rank: {1e3 * seconds:.3f} ms", flush=True
                )
            yield Timing(
                **asdict(case),
                case="ring",
                implementation=NAME,
                scheme="fp16",
                family="baseline",
                end_to_end_ms=1e3 * seconds,
                tops=case.operations / group.size / seconds * 1e-12,
                ranks=group.size,
                placement="zigzag",
                bytes_sent=(group.size - 1) * 4 * HEADS * own * HEAD_DIM,
            )
            break


def _seconds(mesh: Any, clock: Clock, tokens: int, backend: str) -> float:
    with _context(mesh, tokens, backend) as (functional, whole):
        # By its module's name, which is what the context replaces.
        return clock.seconds(
            lambda: functional.scaled_dot_product_attention(*whole, is_causal=True)
        )


def _check(mesh: Any, backend: str) -> None:
    """Raise RuntimeError unless a short call has the result of one GPU."""
    import torch
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard

    with _context(mesh, CHECKED, backend) as (functional, whole):
        own = functional.scaled_dot_product_attention(*whole, is_causal=True)
        found, *inputs = context_parallel_unshard(mesh, [own, *whole], [2] * 4)
    wanted = functional.scaled_dot_product_attention(*inputs, is_causal=True)
    if not torch.allclose(found, wanted, rtol=0.0, atol=0.02):
        raise RuntimeError("its result is not that of one GPU")


@contextmanager
def _context(mesh: Any, tokens: int, backend: str) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the module with the replaced function, and this rank's part of q, k and v."""
    import torch
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    shape = 1, HEADS, tokens, HEAD_DIM
    whole = [torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3)]
    in_context = context_parallel(
        mesh, buffers=whole, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(whole)
    )
    with torch.no_grad(), sdpa_kernel(getattr(SDPBackend, backend)), in_context:
        yield functional, whole
