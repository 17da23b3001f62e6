"""Operations of a transformer with their gradients, on arrays of NumPy or CuPy.

An operation that is trained through returns its result and the function that takes the gradient
with respect to it back: to the inputs, in their order. `xp` is the module of the arrays.
"""

EPSILON = 1e-5


def one_hot(xp, tokens, size, dtype):
    return (tokens[:, None] == xp.arange(size)).astype(dtype)


def linear(x, w):
    """Multiply rows by a matrix [out, in]."""
    return x @ w.T, lambda d: (d @ w, d.T @ x)


def rms_norm(xp, x, gain):
    """Divide each row by its root mean square, and multiply it by `gain` [channel]."""
    r = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)
    unit = x * r

    def back(d):
        du = d * gain
        return r * (du - unit * (du * unit).mean(axis=-1, keepdims=True)), (d * unit).sum(axis=0)

    return unit * gain, back


def silu(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * s, lambda d: d * s * (1 + x * (1 - s))


def rotate(xp, x, cos, sin):
    """Turn channel i with channel head_dim / 2 + i by the angle of the position."""
    a, b = xp.split(x, 2, axis=-1)
    return xp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(xp, q, k, v):
    """Causal attention, [batch, head, token, head_dim]; K and V may have fewer heads."""
    grouped = (*k.shape[:2], -1, *q.shape[2:])
    q, k, v = q.reshape(grouped), k[:, :, None], v[:, :, None]
    scale = q.shape[-1] ** -0.5
    later = xp.triu(xp.ones((q.shape[-2],) * 2, bool), 1)
    s = xp.where(later, -xp.inf, q @ k.swapaxes(-1, -2) * scale)
    p = xp.exp(s - s.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    flat = (q.shape[0], -1, *q.shape[3:])

    def back(d):
        d = d.reshape(grouped)
        dp = d @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
        dk, dv = (x.sum(axis=2) for x in (ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d))
        return (ds @ k).reshape(flat), dk, dv

    return (p @ v).reshape(flat), back
