"""cuattn with arrays of JAX: called as it is, and from functions that JAX compiles.

Outside of `jax.jit` `cuattn.attention` takes arrays of JAX as any others, by DLPack, without a copy
on a GPU, and returns one. In functions that JAX compiles arrays have no memory yet:
`cuattn.jax.dot_product_attention` is an operation there, on XLA's buffers and XLA's stream.

    pip install '.[jax]'
    XLA_PYTHON_CLIENT_PREALLOCATE=false python examples/jax_arrays.py
"""

import time
from functools import partial

import jax
import jax.numpy as jnp

import cuattn
from cuattn.jax import dot_product_attention


def main():
    on_gpu = jax.default_backend() == "gpu"
    shape, dtype = ((1, 4096, 8, 64), jnp.float16) if on_gpu else ((1, 256, 2, 64), jnp.float32)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
    layers = 4

    def step(attend):
        def run(q, k, v):
            for _ in range(layers):
                q = attend(jnp.tanh(q), k, v, is_causal=True)
            return q

        return run

    compiled = jax.jit(step(dot_product_attention))
    eager = step(partial(cuattn.attention, layout="NHD"))
    apart = jnp.abs(compiled(q, k, v) - eager(q, k, v)).max()
    print(f"{layers} layers on {jax.devices()[0]}")
    print(f"compiled and eager differ by at most {apart:.1e}")
    for name, run in (("eager", eager), ("compiled", compiled)):
        begun = time.perf_counter()
        for _ in range(10):
            o = run(q, k, v)
        o.block_until_ready()
        print(f"{name:9}{(time.perf_counter() - begun) * 100:8.2f} ms")


if __name__ == "__main__":
    main()
