"""Times of PyTorch's own context parallelism, a ring of float16, at the sizes of our rings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    for own in LENGTHS:
        if is_over():
            return
        while backends:
            try:
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
    import torch
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    shape = 1, HEADS, tokens, HEAD_DIM
    whole = [torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3)]
    in_context = context_parallel(
        mesh, buffers=whole, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(whole)
    )
    with torch.no_grad(), sdpa_kernel(getattr(SDPBackend, backend)), in_context:
        return clock.seconds(lambda: attend(*whole, is_causal=True))
