"""cuattn inside functions that JAX compiles, on JAX's own buffers and stream.

Nothing is copied and nothing waits: XLA tells the handler (`xla_ffi.py`) where operands and result
lie and which stream it is at, and cuattn enqueues its kernels there. In host memory the emulation
works on XLA's buffers likewise.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python examples/jax_ffi.py
"""

import ctypes
import math
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from xla_ffi import handler

import cuattn
from cuattn import ArgumentError

__all__ = ["attention"]


def attention(q, k, v, *, is_causal=False, scale=None, scheme="int8"):
    """Return `cuattn.attention` of arrays [batch, head, token, head_dim]; it has no derivative.

    For functions under `jax.jit`, where a wrong argument shows when the function runs, as an error
    of JAX's.
    """
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    call = jax.ffi.ffi_call(_target(is_causal, scale, scheme), shape, vmap_method="sequential")
    return call(q, k, v)


@cache
def _target(is_causal, scale, scheme):
    """Register a target with these options, and return its name."""
    options = {"is_causal": is_causal, "scale": scale, "scheme": scheme}

    def on_host(given, results, _):
        arrays = [_numpy(x) for x in (*given, *results)]
        cuattn.attention(*arrays[:3], out=arrays[3], **options)

    def on_gpu(given, results, stream):
        import cupy

        if not math.prod(results[0].shape):
            return  # nothing to write, and no address that says which GPU it is
        device = cupy.cuda.runtime.pointerGetAttributes(results[0].address).device
        with cupy.cuda.Device(device), _cupys(stream):
            arrays = [_cupy(x, device) for x in (*given, *results)]
            cuattn.attention(*arrays[:3], out=arrays[3], **options)

    name = f"cuattn_attention_{len(_targets)}"
    for platform, function in (("cpu", on_host), ("CUDA", on_gpu)):
        capsule, pointer = handler(function)
        _targets.append(pointer)
        jax.ffi.register_ffi_target(name, capsule, platform=platform)
    return name


# XLA keeps addresses of these for as long as the process runs.
_targets = []


def _numpy(x):
    dtype = np.dtype(jnp.dtype(x.dtype))
    memory = (ctypes.c_char * (math.prod(x.shape) * dtype.itemsize)).from_address(x.address)
    return np.ndarray(x.shape, dtype, memory)


def _cupys(stream):
    import cupy

    return cupy.cuda.Stream.from_external(stream)


def _cupy(x, device):
    import cupy

    dtype = np.dtype(jnp.dtype(x.dtype))
    size = math.prod(x.shape) * dtype.itemsize
    memory = cupy.cuda.UnownedMemory(x.address, size, None, device)
    return cupy.ndarray(x.shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


def main():
    on_gpu = jax.default_backend() == "gpu"
    shape, dtype = ((1, 8, 4096, 64), jnp.float16) if on_gpu else ((1, 2, 256, 64), jnp.float32)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
    layers = 4

    def step(attend):
        def run(q, k, v):
            for _ in range(layers):
                q = attend(jnp.tanh(q), k, v, is_causal=True)
            return q

        return run

    compiled, eager = jax.jit(step(attention)), step(cuattn.attention)
    apart = jnp.abs(compiled(q, k, v) - eager(q, k, v)).max()
    print(f"{layers} layers on {jax.devices()[0]}")
    print(f"compiled and eager differ by at most {apart:.1e}")
    for name, run in (("eager", eager), ("compiled", compiled)):
        begun = time.perf_counter()
        for _ in range(10):
            o = run(q, k, v)
        o.block_until_ready()
        print(f"{name:9}{(time.perf_counter() - begun) * 100:8.2f} ms")
    try:
        compiled(q[..., :60], k[..., :60], v[..., :60]).block_until_ready()
    except (jax.errors.JaxRuntimeError, ArgumentError) as error:
        print(f"a head_dim of 60: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
