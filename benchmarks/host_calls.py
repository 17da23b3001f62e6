"""How long single calls keep the host, PyTorch's attention among them, in one loop.

python -m benchmarks.host_calls

Inputs are so small that the host is what takes the time. All functions take turns in an order that
is drawn for each round; between two turns, and there only, the GPU is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cuattn
from cuattn.arrays.device import current_device
from cuattn.bench.cases import HOST
from cuattn.bench.inputs import noise
from cuattn.bench.left_out import LeftOut
from cuattn.choice.timing import Median
from cuattn.compile import jit
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers, Launch
from cuattn.compile.params import record
from cuattn.records.record import Timing
from cuattn.specs.rates import MemoryRateSpec

__all__ = ["CALLS", "CASE", "ROUNDS", "Call", "calls", "main", "time_calls", "timings"]

# What the record calls these times.
CASE = "host-call"

# Turns that count, those before, and calls in a turn: fewer than the driver's queue holds.
ROUNDS, WARMUP, CALLS = 25, 2, 100

# Tokens of the cache, of as many as it has room for.
_CACHED, _CAPACITY = 256, 1024

_SDPA = "PyTorch"


class Call(NamedTuple):
    """A function as the record names it: whose it is, and what it computes."""

    implementation: str
    scheme: str


def calls(left_out: LeftOut) -> dict[Call, Callable[[], object]]:
    """Return what is timed. Without PyTorch its tensors are left out."""
    arrays = [noise(HOST, seed) for seed in range(3)]
    cache = cuattn.KVCache(1, 1, HOST.head_dim, _CAPACITY)
    cache.append(*(noise(replace(HOST, seqlen_q=_CACHED), seed) for seed in (1, 2)))
    found = {
        Call("cuattn, CuPy's arrays", "int8"): partial(cuattn.attention, *arrays),
        **_launches(arrays[0]),
    }
    try:
        import torch
    except ImportError as error:
        left_out("calls with tensors", str(error))
        return found
    from torch.nn.functional import scaled_dot_product_attention

    # Of memory of PyTorch's own, as its users have.
    q, k, v = (torch.from_dlpack(x).clone() for x in arrays)
    out = torch.empty_like(q)
    codes = [cuattn.quantize(q, operand="q"), *cuattn.quantize_kv(k, v)]
    return {
        Call(_SDPA, "fp16"): partial(scaled_dot_product_attention, q, k, v),
        Call("cuattn, quantized before", "int8"): partial(cuattn.attention, *codes),
        Call("cuattn, quantized before, out", "int8"): partial(cuattn.attention, *codes, out=out),
        **{
            Call("cuattn", scheme): partial(cuattn.attention, q, k, v, scheme=scheme)
            for scheme in ("int8", "int8-block", "fp16")
        },
        **{
            Call("cuattn, out", scheme): partial(cuattn.attention, q, k, v, scheme=scheme, out=out)
            for scheme in ("int8", "fp16")
        },
        Call("KVCache.attend", "kv-int8"): partial(cache.attend, q[:, :, :1].contiguous()),
        **found,
    }


def _launches(x: Any) -> dict[Call, Callable[[], object]]:
    """Return the launches of a kernel that does nothing: by ours, and by CuPy."""
    import cupy

    spec, device = MemoryRateSpec(writes=True), current_device()
    buffers = Buffers("from", "to")
    values = {"from": buffers["from"], "to": buffers["to"], "chunks": 0}
    chain = Chain([Launch(spec, device, (1,), values)], buffers)
    struct = np.zeros(1, record(spec.params, spec.params_file))
    pointer = cupy.cuda.function.CPointer(struct.ctypes.data)
    kernel, block = jit.load(spec, device), (spec.num_threads,)

    def by_cupy(keep: object = struct) -> None:
        kernel((1,), block, (pointer,), spec.smem_bytes)

    stream = cupy.cuda.get_current_stream().ptr
    return {
        Call("a launch of cuattn", "-"): partial(chain, (x.data.ptr, x.data.ptr), stream),
        Call("a launch of CuPy", "-"): by_cupy,
    }


def time_calls(
    functions: Mapping[Call, Callable[[], object]], rounds: int = ROUNDS, number: int = CALLS
) -> dict[Call, Median]:
    """Return the median time of the single calls of each function."""
    import cupy

    seconds: dict[Call, list[float]] = {name: [] for name in functions}
    names = [*functions]
    order = np.random.default_rng(0)
    for count in range(-WARMUP, rounds):
        for i in order.permutation(len(names)):
            function = functions[names[i]]
            stamps = [time.perf_counter()]
            for _ in range(number):
                function()
                stamps.append(time.perf_counter())
            cupy.cuda.Device().synchronize()
            if count >= 0:
                seconds[names[i]] += np.diff(stamps).tolist()
    return {name: Median.of(found) for name, found in seconds.items()}


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the rows of the record."""
    for call, time_of_call in time_calls(calls(left_out)).items():
        yield Timing(
            **asdict(HOST),
            case=CASE,
            implementation=call.implementation,
            scheme=call.scheme,
            family="-",
            end_to_end_ms=time_of_call.ms,
            end_to_end_iqr_ms=time_of_call.iqr_ms,
        )


def main() -> None:
    """Print the times, and how they compare with PyTorch's."""
    found = time_calls(calls(lambda what, why: print(f"{what} left out: {why}")))
    sdpa = next((x.ms for name, x in found.items() if name.implementation == _SDPA), None)
    for name, x in found.items():
        times = f"{1e3 * x.ms:7.1f} us  iqr {1e3 * x.iqr_ms:5.1f}"
        ratio = f"  {x.ms / sdpa:5.2f} of PyTorch's" if sdpa else ""
        print(f"{name.implementation:30} {name.scheme:11}{times}{ratio}")


if __name__ == "__main__":
    main()
