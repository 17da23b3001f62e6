"""cuattn with arrays of JAX: called as it is, and from functions that JAX compiles.

Outside of `jax.jit` `cuattn.attention` takes arrays of JAX as any others, by DLPack, without a copy
on a GPU, and returns one. `attend_in_jit` is an operation of a compiled function, a
`jax.pure_callback`: JAX brings its operands to the host and takes the result back from there, so it
works anywhere and is slow on a GPU. `jax_ffi.py` does without the copies.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python examples/jax_arrays.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import cuattn

__all__ = ["attend_in_jit"]


def attend_in_jit(q, k, v, **options):
    """Return `cuattn.attention` of arrays [batch, head, token, head_dim] where JAX traces.

    That is under `jax.jit`, `jax.vmap`, in `jax.lax.scan`. `options` are those of
    `cuattn.attention`, except for those that ask for more than the output. It has no derivative.
    """
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    call = partial(_from_host, **options)
    return jax.pure_callback(call, shape, q, k, v, vmap_method="sequential")


def _from_host(q, k, v, **options):
    """Attend arrays in host memory on the GPU, if there is one, and bring the result back."""
    arrays = [np.asarray(x) for x in (q, k, v)]
    if jax.default_backend() != "gpu":
        return cuattn.attention(*arrays, **options)
    import cupy

    dtype = arrays[0].dtype
    # CuPy does not copy bfloat16 to and fro, but it does copy its bits.
    bits = np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype
    o = cuattn.attention(*(cupy.asarray(x.view(bits)).view(dtype) for x in arrays), **options)
    return o.view(bits).get().view(dtype)


def main():
    on_gpu = jax.default_backend() == "gpu"
    shape, dtype = ((1, 8, 4096, 64), jnp.float16) if on_gpu else ((1, 2, 256, 64), jnp.float32)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
    layers = 4

    @jax.jit
    def compiled(q, k, v):
        for _ in range(layers):
            q = attend_in_jit(jnp.tanh(q), k, v, is_causal=True)
        return q

    eager = q
    for _ in range(layers):
        eager = cuattn.attention(jnp.tanh(eager), k, v, is_causal=True)
    apart = jnp.abs(compiled(q, k, v) - eager).max()
    print(f"{layers} layers on {jax.devices()[0]}")
    print(f"compiled and eager differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
