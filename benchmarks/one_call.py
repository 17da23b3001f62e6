"""Seconds until the first result of one kind of call, in a process that has only a CUDA context.

python -m benchmarks.one_call int8 128
"""

from __future__ import annotations

import sys
import time

import cupy
import numpy as np

import cuattn
from benchmarks.call_kernels import CACHES

# Few tokens: what is measured is everything but the kernels' own time.
TOKENS = 1024


def main() -> None:
    """Print the seconds from the call to its result."""
    call, head_dim = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(0)
    q, k, v = (
        cupy.asarray(rng.standard_normal((1, heads, TOKENS, head_dim)).astype(np.float16))
        for heads in (32, 8, 8)
    )
    cupy.cuda.Device().synchronize()
    begun = time.perf_counter()
    if call in CACHES:
        fmt = CACHES[call](head_dim)
        options = {
            name: getattr(fmt, name)
            for name in ("k_bits", "v_bits", "group", "v_zero", "rotate", "nested")
        }
        cache = cuattn.KVCache(1, 8, head_dim, 2 * TOKENS, **options)
        cache.append(k, v)
        cache.attend(q[:, :, :1])
    else:
        cuattn.attention(q, k, v, scheme=call)
    cupy.cuda.Device().synchronize()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main()
