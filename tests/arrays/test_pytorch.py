"""Tensors of PyTorch in host memory: which are taken, what is returned, and `torch.compile`."""

import sys
from importlib import import_module

import numpy as np
import pytest

import cuattn
from cuattn.arrays import caller
from cuattn.arrays.pytorch import view_tensor
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.needs("torch")

DTYPES = ("float16", "bfloat16", "float32")
SHAPE = (1, 2, 20, 32)


@pytest.fixture
def torch():  # the one of conftest is for GPUs
    return import_module("torch")


@pytest.fixture
def tensors(torch, rng):
    def make(dtype="float32", shape=SHAPE):
        arrays = (rng.standard_normal(shape).astype(np.float32) for _ in "qkv")
        return [torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays]

    return make


def as_numpy(x):
    return x.float().numpy()


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back(torch, tensors, dtype, layout):
    given = tensors(dtype)
    arrays = [as_numpy(x) for x in given]
    o, lse = cuattn.attention(*given, return_lse=True, layout=layout)
    assert type(o) is type(lse) is torch.Tensor
    assert (o.dtype, lse.dtype) == (given[0].dtype, torch.float32)
    assert o.is_contiguous()
    if dtype == "float32":
        expected = cuattn.attention(*arrays, return_lse=True, layout=layout)
        for found, wanted in zip((o, lse), expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted)
    out = torch.empty_like(given[0])
    assert cuattn.attention(*given, out=out, layout=layout) is out
    assert torch.equal(out, o)


def test_bfloat16_needs_no_other_package(torch, tensors, monkeypatch):
    given = tensors("bfloat16")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = [as_numpy(x).astype(ml_dtypes.bfloat16) for x in given]
    expected = cuattn.attention(*arrays).astype(np.float32)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    caller.numpy_dtype.cache_clear()
    np.testing.assert_array_equal(as_numpy(cuattn.attention(*given)), expected)
    caller.numpy_dtype.cache_clear()


def test_a_cache_returns_tensors(torch, tensors):
    q, k, v = tensors("bfloat16", (1, 2, 4, 64))
    cache = cuattn.KVCache(1, 2, 64, 16, device="cpu")
    cache.append(k, v)
    o, lse = cache.attend(q, return_lse=True)
    assert (o.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    out = torch.empty_like(q)
    assert cache.attend(q, out=out) is out
    assert torch.equal(out, o)


def test_quantized_tensors_serve(torch, tensors):
    q, k, v = tensors()
    expected = cuattn.attention(q, k, v)
    found = cuattn.attention(q, *cuattn.quantize_kv(k, v))
    assert torch.equal(found, expected)
    of_codes = cuattn.attention(cuattn.quantize(q, operand="q"), k, v)
    np.testing.assert_array_equal(of_codes, expected.numpy())


def test_strides_and_subclasses_are_followed(torch, tensors):
    class WithMethods(torch.Tensor):
        pass

    q, k, v = tensors()
    expected = cuattn.attention(q, k, v)
    transposed = k.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (transposed, k.as_subclass(WithMethods), torch.nn.Parameter(k, False)):
        assert torch.equal(cuattn.attention(q, other, v), expected)


def test_what_is_negated_when_it_is_read_is_read_so(torch, tensors):
    q, k, v = tensors()
    lazy = torch.complex(torch.zeros_like(k), -k).conj().imag
    assert lazy.is_neg()
    assert torch.equal(cuattn.attention(q, lazy, v), cuattn.attention(q, k, v))
    codes = cuattn.quantize(lazy).codes
    np.testing.assert_array_equal(codes, cuattn.quantize(k).codes)
    before = lazy.clone()
    with pytest.raises(ArgumentError, match=r"^out must be writable"):
        cuattn.attention(q, k, v, out=lazy)
    assert torch.equal(lazy, before)


def fake(torch, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        return mode.from_tensor(x)


def distributed(torch, x):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    # For as long as this process lives: some versions do not come back from ending a group.
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(1)])


def masked(torch, x):
    from torch.masked import masked_tensor

    return masked_tensor(x, x > 0)


KINDS = {
    "fake": fake,
    "distributed": distributed,
    "masked": masked,
    "meta": lambda torch, x: x.to("meta"),
    "sparse": lambda torch, x: x.to_sparse(),
    "csr": lambda torch, x: x[0, 0].to_sparse_csr(),
    "mkldnn": lambda torch, x: x.to_mkldnn(),
    "nested": lambda torch, x: torch.nested.nested_tensor([x[0], x[0]]),
    "jagged": lambda torch, x: torch.nested.nested_tensor([x[0], x[0]], layout=torch.jagged),
    "zero": lambda torch, x: torch._efficientzerotensor(x.shape),
    "gradients": lambda torch, x: x.clone().requires_grad_(),
    "result with gradients": lambda torch, x: x.clone().requires_grad_() * 2,
    "quantized": lambda torch, x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "complex": lambda torch, x: torch.complex(x, x).conj(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("which", ["q", "k", "v", "out"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_memory_are_refused(torch, tensors, kind, which):
    if kind == "distributed" and not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    given = dict(zip("qkv", tensors(), strict=True))
    given[which] = KINDS[kind](torch, given["q"])
    out = torch.full(SHAPE, 7.0)
    with pytest.raises(ArgumentError) as error:
        cuattn.attention(**{"out": out} | given)
    assert error.value.argument.partition(".")[0] == which
    assert (out == 7).all()
    if which != "out":
        with pytest.raises(ArgumentError, match=r"^(x|k)\b"):
            cuattn.quantize(given[which])


def transforms(torch):
    func = torch.func
    return {
        "vmap": lambda f, x: torch.vmap(f)(x[None]),
        "grad": lambda f, x: func.grad(lambda y: f(y).sum())(x),
        "jvp": lambda f, x: func.jvp(f, (x,), (x,)),
        "functionalize": lambda f, x: func.functionalize(f)(x),
    }


@pytest.mark.parametrize("name", ["vmap", "grad", "jvp", "functionalize"])
def test_transforms_are_refused(torch, tensors, name):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"^k must be "):
        transforms(torch)[name](lambda x: cuattn.attention(q, x, v), k)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_tangents_are_refused(torch, tensors, which):
    forward = torch.autograd.forward_ad
    given = dict(zip("qkv", tensors(), strict=True))
    with forward.dual_level():
        dual = forward.make_dual(given[which], torch.ones_like(given[which]))
        with pytest.raises(ArgumentError, match=f"^{which} must be a tensor without a tangent"):
            cuattn.attention(**given | {which: dual})
        cuattn.attention(**given)
    cuattn.attention(**given | {which: dual})


@pytest.mark.filterwarnings("ignore")
def test_what_is_traced_is_refused(torch, tensors):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"^q must be a tensor whose sizes are numbers"):
        torch.jit.trace(lambda x: cuattn.attention(x, k, v), (q,))


def test_lengths_that_pytorch_does_not_give_away_are_refused(torch, tensors):
    cache = cuattn.KVCache(1, 2, 64, 32, device="cpu")
    with pytest.raises(ArgumentError, match=r"^lengths must be whole numbers"):
        cache.truncate(torch._neg_view(torch.tensor([-4])))


def test_gradients_may_be_off(torch, tensors):
    q, k, v = tensors()
    expected = cuattn.attention(q, k, v)
    parameter = torch.nn.Parameter(k)
    with pytest.raises(ArgumentError, match=r"^k must be .*torch\.no_grad\(\)"):
        cuattn.attention(q, parameter, v)
    assert torch.equal(cuattn.attention(q, parameter.detach(), v), expected)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            o = cuattn.attention(q, parameter, v)
            assert torch.equal(o, expected)
            assert not o.requires_grad
            out = torch.empty_like(q).requires_grad_()
            with pytest.raises(ArgumentError, match=r"^out must be writable.* gradients"):
                cuattn.attention(q, k, v, out=out)


def test_autograd_sees_what_is_written(torch, tensors):
    q, k, v = tensors()
    out = torch.ones_like(q)
    weight = torch.ones_like(q).requires_grad_()
    product = weight * out  # keeps `out` for the gradient of the weight
    cuattn.attention(q, k, v, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        made = torch.empty_like(q)
        assert cuattn.attention(q, k, v, out=made) is made


def test_view_is_of_the_tensor_itself(torch):
    x = torch.zeros(4, 6, dtype=torch.bfloat16)[:, ::2]
    view = view_tensor(x, "q")
    assert view == (x.data_ptr(), (4, 3), (6, 2), "bfloat16", (1, 0), False, x)


@pytest.mark.filterwarnings("ignore", "error:Dynamo does not know")
def test_compiled_functions_call_it_as_it_is(torch, tensors):
    q, k, v = tensors()
    counters = import_module("torch._dynamo.utils").counters

    def model(q, k, v):
        o, lse = cuattn.attention(q * 2, k, v, return_lse=True, is_causal=True)
        return o + 1, lse * 2

    expected = model(q, k, v)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager")
    for found, wanted in zip(compiled(q, k, v), expected, strict=True):
        assert torch.equal(found, wanted)
    # What is before the call and what is after it, and nothing of what is inside.
    assert counters["stats"]["unique_graphs"] == 2
    q, k, v = tensors(shape=(1, 2, 9, 32))
    for found, wanted in zip(compiled(q, k, v), model(q, k, v), strict=True):
        assert torch.equal(found, wanted)
    torch._dynamo.reset()
    itself = torch.compile(cuattn.attention, backend="eager")
    assert torch.equal(itself(q, k, v), cuattn.attention(q, k, v))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(q, k, v)


@pytest.mark.filterwarnings("ignore")
def test_compiled_functions_use_a_cache_as_it_is(torch, tensors):
    _, k, v = tensors(shape=(1, 2, 3, 64))

    def step(cache, k, v):
        cache.append(k + 1, v)
        return cache.attend(k) * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager")
    of_both = [cuattn.KVCache(1, 2, 64, 32, device="cpu") for _ in range(2)]
    for _ in range(3):
        assert torch.equal(compiled(of_both[0], k, v), step(of_both[1], k, v))
    assert of_both[0].lengths.tolist() == [9]


@pytest.mark.filterwarnings("ignore")
def test_errors_pass_through_compiled_functions(torch, tensors):
    q, k, v = tensors()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: cuattn.attention(x * 2, k, v, causal=True), backend="eager")
    with pytest.raises(TypeError, match="expected 'is_causal'"):
        compiled(q)
