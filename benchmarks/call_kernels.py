"""Which kernels a first call loads, in its order: planned in earnest, with nothing compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cuattn.arrays.device import Device, target
from cuattn.arrays.view import Array
from cuattn.compile import launch
from cuattn.compile.jit import Spec
from cuattn.kv import append_call as kv_append
from cuattn.kv import attend as kv_attend
from cuattn.kv.geometry import KVGeometry
from cuattn.kv_format import KVFormat
from cuattn.plan import pipeline, prepared
from cuattn.plan.prepared import prepare
from cuattn.scheme import Scheme

__all__ = ["CACHES", "attention_kernels", "cache_kernels", "kernels_of"]

# Caches that stand for all others: of one scale for each token, and with all that 4 bits may have.
CACHES: dict[str, Callable[[int], KVFormat]] = {
    "KVCache, 8 bits": lambda head_dim: KVFormat(head_dim, rotate=True),
    "KVCache, 4 bits": lambda head_dim: KVFormat(head_dim, 4, 4, 64, rotate=True, nested=True),
}

# float16 on the GPU, as DLPack numbers devices.
_DTYPE, _DEVICE = "float16", (2, 0)
_BATCH, _HEADS, _KV_HEADS, _TOKENS = 1, 32, 8, 1024


def kernels_of(call: str, head_dim: int, arch: str) -> list[Spec]:
    """Return what the first call of a scheme, or of one of `CACHES`, loads."""
    kernels = cache_kernels if call in CACHES else attention_kernels
    return kernels(call, head_dim, arch)


def attention_kernels(
    scheme: str | Scheme,
    head_dim: int,
    arch: str,
    is_causal: bool = False,
    *scores: Any,
    head_dim_v: int | None = None,
) -> list[Spec]:
    """Return what `attention` loads for contiguous float16 arrays.

    `scores` are those options of `cuattn.plan.prepared.prepare`, in its order.
    """
    q, k = _array(_HEADS, _TOKENS, head_dim), _array(_KV_HEADS, _TOKENS, head_dim)
    v = _array(_KV_HEADS, _TOKENS, head_dim_v or head_dim)
    with _loaded(arch) as specs:
        prepare.__wrapped__(q, k, v, None, scheme, None, is_causal, False, "HND", *scores)
    return specs


def cache_kernels(cache: str, head_dim: int, arch: str) -> list[Spec]:
    """Return what the first `append` to one of `CACHES` and the first `attend` load."""
    kv_format = CACHES[cache](head_dim)
    geometry = KVGeometry(kv_format, _BATCH, _KV_HEADS, 2 * _TOKENS, page_size=0, num_pages=_BATCH)
    q, k = _array(_HEADS, 1, head_dim), _array(_KV_HEADS, _TOKENS, head_dim)
    with _loaded(arch) as specs:
        kv_append.prepare_append(geometry, k, k, "HND", True)
        kv_attend.prepare_attend(geometry, q, None, None, True, False, "HND")
    return specs


@contextmanager
def _loaded(arch: str) -> Iterator[list[Spec]]:
    """List the specs that are loaded, on a GPU of an architecture that need not be here."""
    facts = target(arch)
    smem = facts.max_smem_per_cta, facts.max_smem_per_sm
    # As many multiprocessors as an H200; no kernel depends on their number.
    device = Device(0, "a GPU", facts.arch.rstrip("a"), facts.arch, 132, *smem)
    specs: list[Spec] = []
    with ExitStack() as patches:
        for module in (prepared, pipeline, kv_append, kv_attend):
            patches.enter_context(patch.object(module, "current_device", lambda: device))
        patches.enter_context(patch.object(launch, "begin", lambda spec, _: specs.append(spec)))
        patches.enter_context(patch.object(launch, "load", lambda *_: SimpleNamespace(ptr=0)))
        yield specs


def _array(heads: int, tokens: int, head_dim: int) -> Array:
    strides = (heads * tokens * head_dim, tokens * head_dim, head_dim, 1)
    return Array((_BATCH, heads, tokens, head_dim), strides, _DTYPE, _DEVICE)
