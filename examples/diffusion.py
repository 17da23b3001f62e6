"""A diffusion transformer's attention: long, non-causal, 64 channels a head, the same every step.

Takes a small transformer with random weights, shaped as those that generate images are (queries and
keys normalized, the time step as scale and shift, keys with a bias that all tokens share), through
the steps of a rectified flow from noise to a latent image. Compares the latents that schemes arrive
at with that of "fp16", which quantizes nothing: errors of all layers and steps come together in it.
On a GPU with CuPy, whose products need cuBLAS (`pip install '.[check13]'`); else all is NumPy.

    python examples/diffusion.py
"""

import argparse
import time

import numpy as np

import cuattn

__all__ = ["Transformer", "attention_ms", "sample"]

HEAD_DIM = 64
# In place of the gains that models learn for the norms of Q and K: logits then have a standard
# deviation of 4, and attention chooses.
SCALE = 4 / HEAD_DIM**0.5


class Transformer:
    """Predicts from a latent image [token, channel] and a time in 0 ... 1 where it is to move.

    Parameters
    ----------
    xp : module
        numpy or cupy.
    """

    def __init__(self, xp, heads=2, layers=2, channels=16, seed=0):
        self.xp, self.heads, self.layers = xp, heads, layers
        self.width = width = heads * HEAD_DIM
        # cuBLAS has products of float16; NumPy's are of float32.
        self.dtype = np.float32 if xp is np else np.float16
        rng = np.random.default_rng(seed)

        def matrix(rows, columns):
            weights = rng.standard_normal((rows, columns)) / rows**0.5
            return xp.asarray(weights.astype(self.dtype))

        self.enter, self.leave = matrix(channels, width), matrix(width, channels)
        self.blocks = [
            {
                "time": matrix(width, 6 * width),
                "qkv": matrix(width, 3 * width),
                "bias": xp.asarray(2 * rng.standard_normal(width).astype(self.dtype)),
                "out": matrix(width, width),
                "up": matrix(width, 4 * width),
                "down": matrix(4 * width, width),
            }
            for _ in range(layers)
        ]

    def __call__(self, latent, at, scheme):
        """Return the velocity of a latent image, in its type."""
        xp = self.xp
        frequencies = xp.exp(xp.linspace(0.0, 6.0, self.width // 2)) * at
        time_step = xp.concatenate([xp.sin(frequencies), xp.cos(frequencies)]).astype(self.dtype)
        x = latent.astype(self.dtype) @ self.enter
        for block in self.blocks:
            shift, scale, gate, shift2, scale2, gate2 = (time_step @ block["time"]).reshape(6, -1)
            x = x + gate * self._attend(_normalized(x) * (1 + scale) + shift, block, scheme)
            wide = (_normalized(x) * (1 + scale2) + shift2) @ block["up"]
            x = x + gate2 * ((wide * _sigmoid(xp, 1.7 * wide)) @ block["down"])
        return (_normalized(x) @ self.leave).astype(latent.dtype)

    def _attend(self, x, block, scheme):
        tokens = len(x)
        packed = (x @ block["qkv"]).reshape(1, tokens, 3, self.heads, HEAD_DIM)
        q, k, v = (packed[:, :, i] for i in range(3))
        k = _normalized(k) + block["bias"].reshape(self.heads, HEAD_DIM)
        o = cuattn.attention(_normalized(q), k, v, scale=SCALE, scheme=scheme, layout="NHD")
        return o.reshape(tokens, self.width) @ block["out"]


def sample(model, noise, steps, scheme):
    """Take noise [token, channel] to a latent image in equal steps of time, from 1 to 0."""
    x = noise
    for step in range(steps):
        x = x - model(x, 1 - step / steps, scheme) / steps
    return x


def attention_ms(xp, tokens, heads, scheme, calls=5):
    """Return the milliseconds of attention alone, on normal inputs: the shortest of some calls."""
    rng = np.random.default_rng(0)
    shape, dtype = (1, heads, tokens, HEAD_DIM), "float32" if xp is np else "float16"
    q, k, v = (xp.asarray(rng.standard_normal(shape, np.float32).astype(dtype)) for _ in range(3))
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        o = cuattn.attention(q, k, v, scale=SCALE, scheme=scheme)
        float(o[0, 0, 0, 0])  # waits for the GPU
        times.append(1e3 * (time.perf_counter() - begun))
    return min(times)


def _normalized(x):
    square = (x.astype(np.float32) ** 2).mean(-1, keepdims=True)
    return (x / (square + 1e-6) ** 0.5).astype(x.dtype)


def _sigmoid(xp, x):
    return 1 / (1 + xp.exp(-x))


def main(argv=None):
    on_gpu = cuattn.gpu_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384 if on_gpu else 384)
    parser.add_argument("--steps", type=int, default=20 if on_gpu else 4)
    parser.add_argument("--heads", type=int, default=16 if on_gpu else 2)
    parser.add_argument("--layers", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--schemes", nargs="+", choices=cuattn.PRESETS)
    args = parser.parse_args(argv)

    xp = np
    if on_gpu:
        import cupy

        xp = cupy
    model = Transformer(xp, args.heads, args.layers)
    rng = np.random.default_rng(1)
    noise = xp.asarray(rng.standard_normal((args.tokens, 16), np.float32))
    where = "on the GPU" if on_gpu else "in NumPy: no GPU here"
    print(f"{args.tokens} tokens, {args.layers} layers, {args.steps} steps, {where}")
    print(f"{'':12}{'latent, L1 %':>14}{'1 - cosine':>12}{'ms a step':>11}{'of attention':>14}")
    exact = sample(model, noise, args.steps, "fp16").astype(np.float64)
    for scheme in args.schemes or ["fp16", "int8", "int8-block", "int8-fast", "int-flash"]:
        model(noise, 1.0, scheme)  # loads kernels
        begun = time.perf_counter()
        found = sample(model, noise, args.steps, scheme).astype(np.float64)
        error = float(abs(found - exact).sum() / abs(exact).sum())  # waits for the GPU
        ms = 1e3 * (time.perf_counter() - begun) / args.steps
        norms = (found**2).sum() * (exact**2).sum()
        apart = 1 - float((found * exact).sum() / norms**0.5)
        alone = args.layers * attention_ms(xp, args.tokens, args.heads, scheme)
        print(f"{scheme:12}{100 * error:14.3f}{max(apart, 0):12.1e}{ms:11.2f}{alone:14.2f}")


if __name__ == "__main__":
    main()
