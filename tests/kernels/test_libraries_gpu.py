"""Arrays of PyTorch and JAX on a GPU."""

import numpy as np
import pytest
from helpers.gpu_cases import _kernels, arrays, as_cupys, delay, every_preset, on_gpu, on_host  # noqa: F401

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu


@every_preset
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pytorch_tensors(torch, rng, scheme, dtype):
    inputs = arrays(rng, dtype)
    expected, expected_lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    tensors = [as_torch(torch, x) for x in inputs]
    o, lse = cuattn.attention(*tensors, scheme=scheme, return_lse=True)
    assert isinstance(o, torch.Tensor)
    assert (o.dtype, o.device, o.shape) == (tensors[0].dtype, tensors[0].device, tensors[0].shape)
    assert lse.dtype == torch.float32
    np.testing.assert_array_equal(o.float().cpu().numpy(), on_host(expected))
    np.testing.assert_array_equal(lse.cpu().numpy(), on_host(expected_lse))
    out = torch.empty_like(tensors[0])
    assert cuattn.attention(*tensors, scheme=scheme, out=out) is out
    assert torch.equal(out, o)
    # Layout and strides as models have them.
    nhd = [x.transpose(1, 2) for x in tensors]
    again = cuattn.attention(*nhd, scheme=scheme, layout="NHD")
    assert torch.equal(again.transpose(1, 2), o)


def as_torch(torch, x):
    if x.dtype.name != "bfloat16":
        return torch.from_dlpack(x)
    return torch.from_dlpack(x.view(np.uint16).view(np.int16)).view(torch.bfloat16)


def test_pytorch_stream_is_followed(cupy, torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    late = [torch.zeros_like(x) for x in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    delay(cupy, as_cupys(stream))
    with torch.cuda.stream(stream):
        for to, x in zip(late, inputs, strict=True):
            to.copy_(x)
        o = cuattn.attention(*late)
        codes = cuattn.quantize(late[1])
        same = torch.equal(o, expected)
    assert same
    stream.synchronize()
    reference = cuattn.quantize(inputs[1])
    np.testing.assert_array_equal(codes.codes.get(), reference.codes.get())


def test_pytorch_memory_freed_early_is_not_reused(torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    for _ in range(20):
        o = cuattn.attention(*(x.clone() for x in inputs))
        torch.full_like(inputs[0], 7.0)
        assert torch.equal(o, expected)


def test_pytorch_tensors_that_need_gradients_are_refused(torch, rng):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))
    with pytest.raises(ArgumentError, match=r"^k must be .* no gradients .*detach\(\)"):
        cuattn.attention(q, k.clone().requires_grad_(), v)


def test_pytorch_and_cupy_arrays_mix(torch, rng):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v))
    o = cuattn.attention(torch.from_dlpack(q), k, torch.from_dlpack(v))
    assert isinstance(o, torch.Tensor)
    np.testing.assert_array_equal(o.cpu().numpy(), expected)
    out = torch.empty(q.shape, dtype=torch.float16, device="cuda")
    assert cuattn.attention(q, torch.from_dlpack(k), v, out=out) is out
    torch.cuda.synchronize()
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@every_preset
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax_arrays(jax, rng, scheme, dtype):
    inputs = arrays(rng, dtype)
    expected, expected_lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    given = [jax.numpy.asarray(on_host(x)).astype(dtype) for x in inputs]
    o, lse = cuattn.attention(*given, scheme=scheme, return_lse=True)
    assert isinstance(o, jax.Array)
    assert o.dtype == given[0].dtype
    np.testing.assert_array_equal(np.asarray(o.astype("float32")), on_host(expected))
    np.testing.assert_array_equal(np.asarray(lse), on_host(expected_lse))


def test_jax_arrays_that_are_not_ready_yet(jax, rng):
    inputs = [on_host(x) for x in arrays(rng, "float32")]
    expected = on_host(cuattn.attention(*(on_gpu(x, "float32") for x in inputs)))

    @jax.jit
    def slowly(x):
        big = jax.numpy.ones((4096, 4096))
        for _ in range(20):
            big = big @ big * 1e-4
        return x + 0 * big[0, 0]

    for _ in range(5):
        # Neither waited for nor kept.
        o = cuattn.attention(*(slowly(jax.numpy.asarray(x)) for x in inputs))
        np.testing.assert_array_equal(np.asarray(o), expected)


def test_arrays_on_host_and_gpu_do_not_mix(rng):
    q, k, v = arrays(rng)
    with pytest.raises(ArgumentError, match=r"^k\.device must be"):
        cuattn.attention(q, on_host(k), v)
    with pytest.raises(ArgumentError, match=r"^out\.device must be"):
        cuattn.attention(q, k, v, out=on_host(q))
    with pytest.raises(ArgumentError, match=r"^k"):
        cuattn.attention(on_host(q), k, on_host(v))
