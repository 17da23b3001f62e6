"""What the tests of `cuattn.torch` and `cuattn.diffusers` share; PyTorch is imported when asked."""

from importlib import import_module

import numpy as np
import pytest

import cuattn


@pytest.fixture(scope="module")
def ct():
    """`cuattn.torch`."""
    return import_module("cuattn.torch")


@pytest.fixture(scope="module")
def torch_module():
    """PyTorch, on a GPU or not; the fixture `torch` of all tests is one that has CUDA."""
    return import_module("torch")


@pytest.fixture
def dynamo(torch_module):
    """`torch.compile` for functions of this test, as one graph, by a backend without a compiler."""
    torch_module._dynamo.reset()

    def compiled(function, **options):
        return torch_module.compile(function, fullgraph=True, backend="aot_eager", **options)

    return compiled


@pytest.fixture
def tensors(torch_module, rng):
    """Return a function that makes Q, K and V, on the GPU if there is one."""

    def make(dtype="float32", heads=2, kv_heads=None, seqlens=(40, 40), head_dim=32, batch=1):
        kv_heads = heads if kv_heads is None else kv_heads
        shapes = [(batch, heads, seqlens[0], head_dim)] + [
            (batch, kv_heads, seqlens[1], head_dim)
        ] * 2
        arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
        of = {"device": device_here(torch_module), "dtype": getattr(torch_module, dtype)}
        return [torch_module.from_numpy(x).to(**of) for x in arrays]

    return make


def device_here(torch):
    return "cuda" if torch.cuda.is_available() and cuattn.gpu_available() else "cpu"


def error(found, exact):
    found, exact = found.double(), exact.double()
    return ((found - exact).abs().sum() / exact.abs().sum()).item()


def own(q, k, v, **options):
    """Return what `cuattn.attention` makes of tensors; bfloat16 in host memory asks for `out`."""
    return cuattn.attention(q, k, v, out=q.new_empty((*q.shape[:-1], v.shape[-1])), **options)
