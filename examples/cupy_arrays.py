"""cuattn with CuPy and nothing else: operands quantized once, a stream, an output of the caller's.

Answers many batches of queries about the same keys and values, as retrieval or cross-attention do.
Where there is no GPU, NumPy's arrays take the same way through an emulation.

    python examples/cupy_arrays.py
"""

import time
from contextlib import nullcontext

import numpy as np

import cuattn

__all__ = ["answer"]


def answer(batches, k, v, scheme="int8"):
    """Attend to the same keys and values with several batches of queries.

    Parameters
    ----------
    batches : list of array [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array [batch, num_kv_heads, seqlen_kv, head_dim]
        Of CuPy, or of NumPy.
    scheme : str

    Returns
    -------
    list of array
        As `batches`; on the GPU what CuPy's current stream will have written.
    """
    k8, v8 = cuattn.quantize_kv(k, v, scheme=scheme)
    return [cuattn.attention(q, k8, v8, scheme=scheme) for q in batches]


def main():
    on_gpu = cuattn.gpu_available()
    xp, stream, wait = np, nullcontext(), lambda: None
    if on_gpu:
        import cupy

        xp = cupy
        stream = cupy.cuda.Stream(non_blocking=True)
        wait = stream.synchronize
    heads, queries, keys = (64, 256, 8192) if on_gpu else (2, 16, 256)
    dtype = "float16" if on_gpu else "float32"
    rng = np.random.default_rng(0)

    def normal(tokens):
        return xp.asarray(rng.standard_normal((1, heads, tokens, 64)).astype(dtype))

    batches, k, v = [normal(queries) for _ in range(8)], normal(keys), normal(keys)
    if on_gpu:
        xp.cuda.Device().synchronize()  # what has been made on the default stream
    with stream:
        for what, run in (
            ("each quantized anew", lambda: [cuattn.attention(q, k, v) for q in batches]),
            ("quantized once", lambda: answer(batches, k, v)),
        ):
            run()  # loads kernels
            wait()
            begun = time.perf_counter()
            found = run()
            wait()
            print(f"K and V {what:20}{1e3 * (time.perf_counter() - begun):9.3f} ms")
        buffer = xp.empty_like(batches[0])
        cuattn.attention(batches[0], k, v, out=buffer)
        wait()
        print(f"the same: {bool((buffer == found[0]).all())}")


if __name__ == "__main__":
    main()
