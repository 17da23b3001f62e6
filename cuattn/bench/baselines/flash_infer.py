"""FlashInfer, from 0.2 on: prompts as ragged tensors, single queries against a cache in pages.

It compiles kernels when they are first used, for which it needs the CUDA toolkit, or its package of
compiled ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ...common.sizes import ceil_div
from ..cases import Case
from ..ours import Run

# Of partial results; twice what its documentation recommends. What does not fit is an error.
WORKSPACE_BYTES = 256 << 20
# Tokens. Its keys are shared among CTAs by pages, so one page for a sequence would not do.
PAGE_SIZE = 16
# Query heads that share a key head from which on its tensor cores are worth it.
TENSOR_CORES_FROM = 4


def prepare(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind it to PyTorch tensors [B, H, N, D] in float16, copied to its layouts beforehand."""
    return (_prefill if case.seqlen_q > 1 else _decode)(q, k, v, case)


def _prefill(q: Any, k: Any, v: Any, case: Case) -> Run:
    import flashinfer

    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(_workspace(q.device), "NHD")
    wrapper.plan(
        _offsets(q, case.batch, case.seqlen_q),
        _offsets(q, case.batch, case.seqlen_kv),
        case.num_q_heads,
        case.num_kv_heads,
        case.head_dim,
        causal=case.is_causal,
        q_data_type=q.dtype,
    )
    # [token of any sequence, head, channel]
    rows = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in (q, k, v)]

    def attend() -> Any:
        o = wrapper.run(*rows)
        return o.unflatten(0, (case.batch, case.seqlen_q)).transpose(1, 2)

    return Run(kernel=attend, end_to_end=attend)


def _decode(q: Any, k: Any, v: Any, case: Case) -> Run:
    import flashinfer
    import torch

    pages = ceil_div(case.seqlen_kv, PAGE_SIZE)
    in_last = case.seqlen_kv - (pages - 1) * PAGE_SIZE
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(q.device),
        "HND",
        use_tensor_cores=case.num_q_heads >= TENSOR_CORES_FROM * case.num_kv_heads,
    )
    integers = {"dtype": torch.int32, "device": q.device}
    wrapper.plan(
        _offsets(q, case.batch, pages),
        torch.arange(case.batch * pages, **integers),
        torch.full((case.batch,), in_last, **integers),
        case.num_q_heads,
        case.num_kv_heads,
        case.head_dim,
        PAGE_SIZE,
        q_data_type=q.dtype,
    )
    cached = tuple(_paged(x, pages) for x in (k, v))
    query = q.squeeze(2).contiguous()

    def attend() -> Any:
        return wrapper.run(query, cached).unsqueeze(2)

    return Run(kernel=attend, end_to_end=attend)


def _paged(x: Any, pages: int) -> Any:
    """Copy [B, H, N, D] to [page of any sequence, H, token of the page, D]."""
    from torch.nn.functional import pad

    padded = pad(x, (0, 0, 0, pages * PAGE_SIZE - x.shape[2]))
    return padded.unflatten(2, (pages, PAGE_SIZE)).transpose(1, 2).flatten(0, 1).contiguous()


def _offsets(q: Any, batch: int, length: int) -> Any:
    """Return where sequences of equal lengths begin, and the last one ends."""
    import torch

    return length * torch.arange(batch + 1, dtype=torch.int32, device=q.device)


@cache
def _workspace(device: Any) -> Any:
    """Return memory that all calls share: what is in it is of no use to the next one."""
    import torch

    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
