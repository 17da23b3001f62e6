"""Greedy decoding with a cache of K and V for each layer, on a GPU as one CUDA graph for a token.

Nothing that changes from token to token is known to the host: the position, the lengths of the
caches and the tokens lie where the arrays are, so one captured graph serves for all of them.
`generate.py` lets a trained model write with it. By itself it compares the caches on random tokens:

    python examples/decoding.py
"""

from functools import cache

import numpy as np
from lm_ops import rms_norm, silu

import cuattn

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 8, 2, 64, 512
PROMPT, STEPS = 400, 16
QUANTIZED = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits for all tokens": {"bits": 4, "nested": False},
    "4 bits, groups of 32": {"bits": 4, "group": 32, "v_zero": True},
}


class HalfCache:
    """K and V in float16, as plain arrays: what a `cuattn.KVCache` is compared with.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    num_kv_heads, head_dim, capacity : int
        For one sequence.
    """

    def __init__(self, xp, num_kv_heads, head_dim, capacity):
        self.xp = xp
        shape = (1, num_kv_heads, capacity, head_dim)
        self.k, self.v = (xp.zeros(shape, np.float16) for _ in range(2))
        self.length = xp.zeros(1, np.int64)

    @property
    def nbytes(self):
        """Bytes of K and V."""
        return self.k.nbytes + self.v.nbytes

    def append(self, k, v):
        """Take tokens [1, kv head, token, head_dim] up."""
        slots = self.length + self.xp.arange(k.shape[2])
        self.k[:, :, slots] = k
        self.v[:, :, slots] = v
        self.length += k.shape[2]

    def attend(self, q):
        """Attend with the last queries [1, head, query, head_dim], causally."""
        xp, n = self.xp, q.shape[2]
        grouped = q.reshape(1, self.k.shape[1], -1, *q.shape[2:])
        s = product(xp, grouped, self.k[:, :, None]) * q.shape[-1] ** -0.5
        # All of the capacity is looked at, as the host does not know the length.
        last = self.length - n + xp.arange(n)
        s = xp.where(xp.arange(self.k.shape[2]) <= last[:, None], s, -xp.inf)
        p = xp.exp(s - s.max(axis=-1, keepdims=True))
        p = p / p.sum(axis=-1, keepdims=True)
        return product(xp, p, self.v[:, :, None].swapaxes(-1, -2)).reshape(q.shape)


class Decoder:
    """One sequence of a `TinyLM` with its caches.

    Parameters
    ----------
    model : TinyLM
    caches : list
        For each layer, with `append` and `attend`; empty.
    """

    def __init__(self, model, caches):
        xp = model.xp
        self.model, self.caches = model, caches
        self.tokens = xp.zeros((1, model.sizes.context), np.int64)
        # Tokens that the caches have; one more is known.
        self.position = xp.zeros(1, np.int64)

    def begin(self, prompt):
        """Read the prompt, a list of bytes, and choose the first token after it; see `step`."""
        self.tokens[0, : len(prompt)] = self.model.xp.asarray(prompt)
        return self.step(len(prompt))

    def step(self, count=1):
        """Read `count` tokens and choose the one after them; return its logits [1, byte]."""
        model = self.model
        xp, p = model.xp, model.parameters
        slots = self.position + xp.arange(count)
        x = p["embedding"][self.tokens[:, slots]]
        cos, sin = model.cos[slots], model.sin[slots]
        for i, kv in enumerate(self.caches):
            h, _ = rms_norm(xp, x, p[f"{i}.attention_norm"])
            q, k, v = model.heads(product(xp, h, p[f"{i}.qkv"]), cos, sin)
            kv.append(k, v)
            o = kv.attend(q).swapaxes(1, 2).reshape(1, count, -1)
            x = x + product(xp, o, p[f"{i}.out"])
            h, _ = rms_norm(xp, x, p[f"{i}.mlp_norm"])
            h, _ = silu(xp, product(xp, h, p[f"{i}.up"]))
            x = x + product(xp, h, p[f"{i}.down"])
        x, _ = rms_norm(xp, x[:, -1], p["norm"])
        logits = product(xp, x, p["embedding"])
        self.position += count
        self.tokens[:, self.position] = logits.argmax(axis=-1)[:, None]
        return logits


class Graph:
    """`Decoder.step` of one token, captured; to be made after a step, which loads the kernels.

    Must be made with an allocator of its own (`cupy.cuda.using_allocator`), on a stream other than
    the default one.
    """

    def __init__(self, decoder):
        import cupy

        self.stream = cupy.cuda.get_current_stream()
        self.stream.begin_capture()
        decoder.step()
        self.graph = self.stream.end_capture()

    def launch(self):
        """Enqueue the step."""
        self.graph.launch(self.stream)


def product(xp, a, b):
    """Return a bᵀ of the last two axes; the others broadcast.

    On a GPU not by cuBLAS, which CuPy does not let take part in a capture.
    """
    if xp is np:
        return a @ b.swapaxes(-1, -2)
    return sum_of_products()(a[..., :, None, :], b[..., None, :, :], axis=-1)


@cache
def sum_of_products():
    import cupy

    return cupy.ReductionKernel(
        "T x, U y", "T z", "x * static_cast<T>(y)", "a + b", "z = a", "0", "sum_of_products"
    )


def main():
    on_gpu = cuattn.gpu_available()
    xp, device = np, "cpu"
    if on_gpu:
        import cupy as xp

        device = None
    sizes = (KV_HEADS, HEAD_DIM, CAPACITY)
    caches = {"float16": HalfCache(xp, *sizes)}
    for name, options in QUANTIZED.items():
        caches[name] = cuattn.KVCache(1, *sizes, device=device, **options)
    where = "on the GPU" if on_gpu else "emulated in NumPy"
    print(f"{PROMPT} tokens, then {STEPS} one by one, {where}")
    print(f"{'cache':22}{'bytes':>10}{'differs by':>14}")
    expected = None
    for name, kv in caches.items():
        outputs = attended(xp, kv)
        expected = outputs if expected is None else expected
        difference = abs(outputs - expected).sum() / abs(expected).sum()
        print(f"{name:22}{kv.nbytes:10}{100 * float(difference):12.2f} %")


def attended(xp, kv):
    """Return the outputs of one query of each of `STEPS` tokens, after a prompt."""
    rng = np.random.default_rng(0)

    def tokens(heads, count):
        return xp.asarray(rng.standard_normal((1, heads, count, HEAD_DIM), np.float32))

    bias = tokens(KV_HEADS, 1)  # which channels of keys share in many models
    kv.append(tokens(KV_HEADS, PROMPT) + bias, tokens(KV_HEADS, PROMPT))
    outputs = []
    for _ in range(STEPS):
        kv.append(tokens(KV_HEADS, 1) + bias, tokens(KV_HEADS, 1))
        outputs.append(kv.attend(tokens(HEADS, 1)))
    return xp.concatenate(outputs)


if __name__ == "__main__":
    main()
