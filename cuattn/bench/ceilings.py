"""What this GPU can do at most, and where a call stands below it: the two axes of a roofline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..arrays.device import current_device
from ..choice.timing import ROUNDS, CleanL2, time_gpu
from ..presets import resolve
from ..records.record import Ceiling, Timing
from . import prefill
from .rate_kernels import rate_calls

__all__ = ["best", "intensity", "measure", "share", "tops_of"]

BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16}


def measure(rounds: int = ROUNDS) -> list[Ceiling]:
    """Return what this GPU can do at most, measured by kernels that do nothing else.

    Products are those that this project's kernels are made of: ``wgmma`` on Hopper, ``mma.sync``
    everywhere. Data-center GPUs newer than Hopper have faster ones.

    Parameters
    ----------
    rounds : int
        How often each kernel is run.
    """
    calls = list(rate_calls(current_device()))
    # Behind lines that were written, reading is slower.
    functions = {i: call.run for i, call in enumerate(calls)}
    times = time_gpu(functions, rounds=rounds, flush=CleanL2)
    found = []
    for i, call in enumerate(calls):
        scale = 1e-9 if call.is_product else 1e-6  # work a millisecond to TOPS, or to GB/s
        rate = call.work / times[i].ms * scale
        iqr = rate * times[i].iqr_ms / times[i].ms
        found.append(Ceiling(what=call.what, instruction=call.instruction, rate=rate, iqr=iqr))
    return found


def best(ceilings: Iterable[Ceiling], what: str) -> float | None:
    """Return the highest rate that was reached, whatever the instruction; None if not measured."""
    return max((ceiling.rate for ceiling in ceilings if ceiling.what == what), default=None)


def tops_of(ceilings: Sequence[Ceiling], scheme: str) -> float | None:
    """Return the ceiling of a scheme's two products, half of the operations each, in TOPS.

    Codes of 4 bits count as INT8, which P V has on every GPU and Q Kᵀ on those newer than sm_89.
    """
    how = resolve(scheme)
    qk, pv = (best(ceilings, "int8" if x == "int4" else x) for x in (how.qk, how.pv))
    return 2 / (1 / qk + how.p_matrices / pv) if qk and pv else None


def share(ceilings: Sequence[Ceiling], timing: Timing) -> float | None:
    """Return a row's speed, on quantized operands, as a share of what the GPU can do at most.

    Decoding, which reads, is held against a copy, the fastest that memory is known to go.
    """
    rate = timing.tops if timing.gbps is None else timing.gbps
    most = tops_of(ceilings, timing.scheme) if timing.gbps is None else best(ceilings, "copy")
    return rate / most if most and rate else None


def intensity(timing: Timing) -> float | None:
    """Return operations for each byte that the kernel cannot but move; None if not known.

    Attention to as many keys as queries reads codes of Q, K and V once and writes O in 16 bits, if
    its caches are large enough. Decoding says itself what it reads.
    """
    if timing.gbps is not None:
        if not timing.kernel_ms:
            return None
        return timing.operations / (timing.gbps * timing.kernel_ms * 1e6)
    if not timing.is_plain(prefill.KIND):
        return None
    how = resolve(timing.scheme)
    q_rows = timing.batch * timing.num_q_heads * timing.seqlen_q
    kv_rows = timing.batch * timing.num_kv_heads * timing.seqlen_kv
    bits = (q_rows + kv_rows) * BITS[how.qk] + kv_rows * BITS[how.pv] + 16 * q_rows
    return timing.operations / (timing.head_dim * bits / 8)
