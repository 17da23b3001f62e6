"""Times of attention to a latent cache, MLA in the absorbed form, beside a copy and float16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuattn
from cuattn.bench import decode, ours
from cuattn.bench.cases import Case
from cuattn.bench.inputs import noise, token_noise
from cuattn.bench.left_out import LeftOut, in_a_line, room_for
from cuattn.records.record import Timing

KIND, COPY_KIND = "mla-decode", "copy-mla-decode"
SCHEME = "kv-int8"
# Matrix products of PyTorch, with all scores between them.
MATMUL = "pytorch-matmul"

LATENT, CHANNELS = 512, 576
# DeepSeek-V3: 128 + 64 channels before the absorption.
SCALE = 192**-0.5


def absorbed(batch: int, tokens: int, num_q_heads: int) -> Case:
    """Return the case of one query of each sequence."""
    return Case(
        batch=batch,
        num_q_heads=num_q_heads,
        num_kv_heads=1,
        seqlen_q=1,
        seqlen_kv=tokens,
        head_dim=CHANNELS,
        is_causal=False,
    )


# All heads on one GPU, those of one of eight, and one long sequence.
CASES = (absorbed(64, 8192, 128), absorbed(64, 8192, 16), absorbed(1, 131072, 128))


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of all cases; `tops` count K's 576 channels and V's 512."""
    for case in CASES:
        scores = 8 * case.batch * case.num_q_heads * case.seqlen_kv
        needed = 3 * case.input_bytes + scores + 2 * decode.COPY_BYTES
        with room_for(case, needed, left_out) as fits:
            if fits:
                yield from _timed(case, left_out)


def operations(case: Case) -> int:
    """Return the multiplications and additions of Q Kᵀ and P V."""
    return 2 * case.batch * case.num_q_heads * case.seqlen_kv * (CHANNELS + LATENT)


def _timed(case: Case, left_out: LeftOut) -> Iterator[Timing]:
    q = noise(case, 0)
    tokens = token_noise(case, case.seqlen_kv, 1)[:, 0]
    calls = [_cached(case, q, tokens), replace(decode.copy(), case=COPY_KIND)]
    baseline = _matmul(case, q, tokens, left_out)
    if baseline is not None:
        calls.append(baseline)
    for row in decode.timed(case, calls):
        if row.case == KIND and row.kernel_ms:
            row = replace(row, tops=operations(case) / row.kernel_ms * 1e-9)
        yield row


def _cached(case: Case, q: Any, tokens: Any) -> decode.Call:
    import cupy

    cache = cuattn.LatentKVCache(case.batch, case.seqlen_kv)
    cache.append(tokens[..., :LATENT], tokens[..., LATENT:])
    out = cupy.empty((*q.shape[:3], LATENT), q.dtype)

    def run() -> Any:
        return cache.attend(q, scale=SCALE, is_causal=case.is_causal, out=out)

    run()
    moved = case.batch * case.seqlen_kv * cache.bytes_per_token
    return decode.Call(KIND, ours.NAME, SCHEME, run, moved)


def _matmul(case: Case, q: Any, tokens: Any, left_out: LeftOut) -> decode.Call | None:
    """Return PyTorch's products on float16, of which V is a part of K, as it lies."""
    try:
        import torch

        queries, k = (torch.from_dlpack(x) for x in (q[:, :, 0], tokens))
    except Exception as error:  # whatever is wrong with it is no finding
        left_out(MATMUL, in_a_line(error))
        return None
    v = k[..., :LATENT]
    none = torch.zeros((), dtype=k.dtype, device=k.device)

    def run() -> Any:
        s = torch.baddbmm(none, queries, k.mT, beta=0, alpha=SCALE)
        return torch.bmm(torch.softmax(s, dim=-1), v)

    run()
    return decode.Call(KIND, MATMUL, decode.FP16, run, tokens.nbytes)
