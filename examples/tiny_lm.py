"""A transformer language model of bytes, small enough to be trained on the spot.

Layers of RMS norms, rotary positions, heads of K and V that serve several query heads, and SiLU;
the embedding is the output's matrix, too. Gradients are written by hand (`lm_ops.py`). Arrays are
of NumPy or CuPy, whichever module is passed as `xp`.
"""

import math
from dataclasses import dataclass

import numpy as np
from lm_ops import attention, linear, one_hot, rms_norm, rotate, silu

VOCABULARY = 256
BETAS = (0.9, 0.98)
ADAM_EPSILON = 1e-8
WARM_UP = 20  # steps
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Sizes:
    """What the model is made of; `context` is the most tokens of a sequence."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 512
    context: int = 256

    def shapes(self):
        """Return the shape of each parameter by name; matrices are [out, in]."""
        shapes = {"embedding": (VOCABULARY, self.width), "norm": (self.width,)}
        for i in range(self.layers):
            shapes |= {
                f"{i}.attention_norm": (self.width,),
                f"{i}.qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.width),
                f"{i}.out": (self.width, self.heads * self.head_dim),
                f"{i}.mlp_norm": (self.width,),
                f"{i}.up": (self.hidden, self.width),
                f"{i}.down": (self.width, self.hidden),
            }
        return shapes


class TinyLM:
    """The model: `parameters` by name, views of one vector, `flat`."""

    def __init__(self, xp, sizes, *, seed=0, dtype="float32"):
        self.xp, self.sizes = xp, sizes
        self.flat, self.parameters = self.vector(dtype)
        rng = np.random.default_rng(seed)
        for name, parameter in self.parameters.items():
            if name.endswith("norm"):
                parameter[...] = 1
                continue
            std = 0.02 if name == "embedding" else parameter.shape[1] ** -0.5
            if name.endswith(("out", "down")):
                # The sum over layers begins with the magnitude of one.
                std /= math.sqrt(2 * sizes.layers)
            parameter[...] = xp.asarray(std * rng.standard_normal(parameter.shape, np.float32))
        frequency = ROTARY_BASE ** -(xp.arange(0, sizes.head_dim, 2) / sizes.head_dim)
        angle = xp.arange(sizes.context)[:, None] * frequency
        # [position, head_dim / 2]
        self.cos, self.sin = (f(angle).astype(dtype) for f in (xp.cos, xp.sin))

    def vector(self, dtype):
        """Return zeros for all parameters, and the views of them by name."""
        shapes = self.sizes.shapes()
        flat = self.xp.zeros(sum(map(math.prod, shapes.values())), dtype)
        views, start = {}, 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            views[name] = flat[start:end].reshape(shape)
            start = end
        return flat, views

    def logits(self, tokens):
        """Return the logits [batch, token, byte] of what follows each token [batch, token]."""
        return self._forward(tokens)[0].reshape(*tokens.shape, VOCABULARY)

    def loss(self, tokens):
        """Return the mean cross-entropy of `tokens` [batch, 1 + token] and its gradient, flat."""
        xp = self.xp
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        logits, back = self._forward(inputs)
        hot = one_hot(xp, targets, VOCABULARY, logits.dtype)
        logits = logits - logits.max(axis=-1, keepdims=True)
        log_sum = xp.log(xp.exp(logits).sum(axis=-1, keepdims=True))
        loss = ((log_sum[:, 0] - (logits * hot).sum(axis=-1)) / len(targets)).sum()
        return loss, back((xp.exp(logits - log_sum) - hot) / len(targets))

    def _forward(self, tokens):
        xp, p = self.xp, self.parameters
        x = p["embedding"][tokens.reshape(-1)]
        backs = []
        for i in range(self.sizes.layers):
            x, back = self._layer(x, i, len(tokens))
            backs.append(back)
        normed, norm_back = rms_norm(xp, x, p["norm"])
        logits, out_back = linear(normed, p["embedding"])

        def back(d):
            flat, g = self.vector(d.dtype)
            d, of_output = out_back(d)
            d, g["norm"][...] = norm_back(d)
            for layer_back in reversed(backs):
                d = layer_back(d, g)
            hot = one_hot(xp, tokens.reshape(-1), VOCABULARY, d.dtype)
            g["embedding"][...] = of_output + hot.T @ d
            return flat

        return logits, back

    def _layer(self, x, i, batch):
        xp = self.xp
        norm, qkv, out, mlp_norm, up, down = (
            f"{i}.{name}" for name in ("attention_norm", "qkv", "out", "mlp_norm", "up", "down")
        )
        p = self.parameters
        h, norm_back = rms_norm(xp, x, p[norm])
        h, qkv_back = linear(h, p[qkv])
        h, attention_back = self._attention(h, batch)
        h, out_back = linear(h, p[out])
        x = x + h
        h, mlp_norm_back = rms_norm(xp, x, p[mlp_norm])
        h, up_back = linear(h, p[up])
        h, silu_back = silu(xp, h)
        h, down_back = linear(h, p[down])

        def back(dx, g):
            d, g[down][...] = down_back(dx)
            d, g[up][...] = up_back(silu_back(d))
            d, g[mlp_norm][...] = mlp_norm_back(d)
            dx = dx + d
            d, g[out][...] = out_back(dx)
            d, g[qkv][...] = qkv_back(attention_back(d))
            d, g[norm][...] = norm_back(d)
            return dx + d

        return x + h, back

    def _attention(self, qkv, batch):
        xp, tokens = self.xp, len(qkv) // batch
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        q, k, v = self.heads(qkv.reshape(batch, tokens, -1), cos, sin)
        o, attention_back = attention(xp, q, k, v)

        def back(d):
            d = d.reshape(batch, tokens, *o.shape[1::2]).swapaxes(1, 2)
            dq, dk, dv = attention_back(d)
            dq, dk = (rotate(xp, x, cos, -sin) for x in (dq, dk))
            return xp.concatenate([dq, dk, dv], axis=1).swapaxes(1, 2).reshape(qkv.shape)

        return o.swapaxes(1, 2).reshape(len(qkv), -1), back

    def heads(self, qkv, cos, sin):
        """Split [batch, token, channel] into Q, K, V [batch, head, token, head_dim], rotated."""
        n = self.sizes.heads
        x = qkv.reshape(*qkv.shape[:2], -1, self.sizes.head_dim).swapaxes(1, 2)
        q, k, v = x[:, :n], x[:, n : -self.sizes.kv_heads], x[:, -self.sizes.kv_heads :]
        return rotate(self.xp, q, cos, sin), rotate(self.xp, k, cos, sin), v


def train(model, text, *, steps, batch, length, rate, seed):
    """Fit the model to runs of `text` [byte] by Adam (Kingma and Ba, arXiv 1412.6980).

    Yields (step, loss) after each step; the loss stays where it was computed, so that a GPU is
    waited for only by those who look at it.
    """
    xp, rng = model.xp, np.random.default_rng(seed)
    first, second = xp.zeros_like(model.flat), xp.zeros_like(model.flat)
    for step in range(1, steps + 1):
        starts = rng.integers(0, len(text) - length, (batch, 1))
        loss, g = model.loss(text[xp.asarray(starts + np.arange(length + 1))])
        g /= xp.maximum(1, xp.sqrt((g * g).sum()))
        first += (1 - BETAS[0]) * (g - first)
        second += (1 - BETAS[1]) * (g * g - second)
        # Up within WARM_UP steps, then down to 0 as a quarter of a wave.
        now = rate * min(1, step / WARM_UP) * math.cos(math.pi / 2 * step / (steps + 1))
        mean, square = (m / (1 - b**step) for m, b in zip((first, second), BETAS, strict=True))
        model.flat -= now * mean / (xp.sqrt(square) + ADAM_EPSILON)
        yield step, loss
