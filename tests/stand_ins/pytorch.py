"""As much of PyTorch as cuattn.bench asks of it, on NumPy's arrays. E4M3 is its bits, in uint8."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from cuattn.reference import exact
from cuattn.reference.rounding import e4m3_bits, e4m3_values, round_e4m3

E4M3 = np.dtype(np.uint8)


class Tensor(np.ndarray):
    """An array with PyTorch's methods, said to be on a GPU."""

    device = "cuda:0"

    def transpose(self, a, b):
        return self.swapaxes(a, b)

    def flatten(self, first, last):
        return self.reshape(*self.shape[:first], -1, *self.shape[last + 1 :])

    def unflatten(self, axis, sizes):
        return self.reshape(*self.shape[:axis], *sizes, *self.shape[axis + 1 :])

    def squeeze(self, axis):
        return self[(slice(None),) * axis + (0,)] if self.shape[axis] == 1 else self

    def unsqueeze(self, axis):
        return np.expand_dims(self, axis)

    def contiguous(self):
        return np.ascontiguousarray(self)

    def clone(self):
        return self.copy()

    def new_empty(self, shape, dtype):
        return empty(shape, dtype)

    def copy_(self, other):
        values = e4m3_values(np.asarray(other)) if other.dtype == E4M3 else np.asarray(other)
        self[...] = (
            e4m3_bits(round_e4m3(values)) if self.dtype == E4M3 else values.astype(self.dtype)
        )
        return self

    def fill_(self, value):
        self[...] = value
        return self

    def mul_(self, other):
        self *= np.asarray(other).astype(self.dtype)
        return self

    def mean(self, dim, keepdim):
        return tensor(np.mean(np.asarray(self, np.float32), dim, keepdims=keepdim), self.dtype)

    def clamp(self, **least):
        return np.maximum(self, self.dtype.type(least["min"]))

    def float(self):
        return self.astype(np.float32)

    def half(self):
        return self.astype(np.float16)

    def reciprocal(self):
        return 1 / self


def tensor(x, dtype=None):
    return np.array(x, dtype).view(Tensor)


def empty(shape, dtype, device="cuda:0"):
    """Return what shows where it is read before it is written."""
    return np.full(shape, 99, dtype).view(Tensor)


def empty_like(x, dtype=None):
    return empty(x.shape, dtype or x.dtype)


def full(shape, value, dtype, device):
    return np.full(shape, value, dtype).view(Tensor)


def vector_norm(x, order, dim=None, keepdim=False):
    assert order == np.inf
    return np.abs(x).max(axis=dim, keepdims=keepdim)


def reciprocal(x, out):
    out[...] = 1 / x


def pad(x, widths):
    by_axis = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    return np.pad(x, [(0, 0)] * (x.ndim - len(by_axis)) + by_axis).view(Tensor)


def attended(q, k, v, is_causal=False):
    """Return attention to [B, H, N, D] in float64, as a tensor."""
    arrays = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    return tensor(exact.attention(*arrays, is_causal=is_causal)[0])


def scaled_dot_product_attention(q, k, v, is_causal=False, enable_gqa=False):
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert not is_causal or q.shape[2] == k.shape[2], "PyTorch's mask is another one"
    return attended(q, k, v, is_causal).half()


def pytorch(capability=(9, 0)):
    """Return the modules, by name, of a PyTorch whose GPU has a compute capability."""
    backends = {"FLASH_ATTENTION": 1, "CUDNN_ATTENTION": 2}
    functional = SimpleNamespace(pad=pad, scaled_dot_product_attention=scaled_dot_product_attention)
    attention = SimpleNamespace(
        SDPBackend=SimpleNamespace(__members__=backends), sdpa_kernel=nullcontext
    )
    cuda = SimpleNamespace(
        is_available=lambda: True,
        synchronize=lambda: None,
        get_device_capability=lambda device: capability,
        current_stream=lambda: SimpleNamespace(cuda_stream=0),
    )
    torch = SimpleNamespace(
        cuda=cuda,
        linalg=SimpleNamespace(vector_norm=vector_norm),
        from_dlpack=lambda x: np.asarray(x).view(Tensor),
        float8_e4m3fn=E4M3,
        float32=np.dtype(np.float32),
        int32=np.dtype(np.int32),
        uint8=np.dtype(np.uint8),
        arange=lambda stop, dtype, device: tensor(np.arange(stop), dtype),
        zeros=lambda size, dtype, device: tensor(np.zeros(size), dtype),
        empty=empty,
        empty_like=empty_like,
        full=full,
        reciprocal=reciprocal,
    )
    nn = SimpleNamespace(functional=functional, attention=attention)
    torch.nn = nn
    return {
        "torch": torch,
        "torch.nn": nn,
        "torch.nn.functional": functional,
        "torch.nn.attention": attention,
    }
