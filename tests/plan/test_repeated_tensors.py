"""Calls on tensors of PyTorch that have been made before: the simulated GPU reads host memory."""

import contextlib
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

import cuattn
from cuattn import attention_on_gpu
from cuattn.arrays.caller import Caller, device_of
from cuattn.errors import ArgumentError
from cuattn.plan import repeated_call
from cuattn.plan.kinds import ordinal_of
from cuattn.reference import emulate

pytestmark = pytest.mark.needs("torch")

SHAPE = (1, 2, 40, 64)


@pytest.fixture
def torch():  # the one of conftest is for GPUs
    return import_module("torch")


@pytest.fixture(params=["PyTorch's check", "no check"])
def looked_at(request, gpu, torch, monkeypatch):
    """Have tensors pass for ones on the simulated GPU; return the names of those looked at."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: True))
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 0)
    gpu.stream = 0
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda ordinal: gpu.stream, raising=False
    )
    if request.param == "no check":
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    monkeypatch.setattr("cuattn.arrays.caller.stream_at", contextlib.nullcontext)
    monkeypatch.setattr(repeated_call, "stream_at", contextlib.nullcontext)
    monkeypatch.setattr(repeated_call, "ordinal_of", ordinal_of)
    cuda = SimpleNamespace(
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        runtime=SimpleNamespace(getDevice=lambda: 0),
    )
    cupy = SimpleNamespace(ndarray=type("ndarray", (), {}), cuda=cuda)
    monkeypatch.setattr("cuattn.arrays.caller.cupy_module", lambda: cupy)
    gpu.cupy = cupy
    names = []

    class Counted(Caller):
        def look(self, x, name):
            names.append(name)
            return super().look(x, name)

    monkeypatch.setattr(attention_on_gpu, "Caller", Counted)
    monkeypatch.setattr(import_module("cuattn.attention"), "device_of", device_of)
    return names


@pytest.fixture
def tensors(torch, rng):
    def make(shape=SHAPE, dtype="float16", count=3):
        arrays = (rng.standard_normal(shape).astype(np.float32) for _ in range(count))
        return [torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays]

    return make


def check(o, given, **options):
    arrays = [x.detach().numpy() for x in given]
    expected, _ = emulate.attention(*arrays, **options)
    np.testing.assert_allclose(o.detach().numpy(), expected, rtol=2.0**-10, atol=1e-2)


def remembered(call, looked_at):
    """Make a call until it is recognized at once."""
    for _ in range(4):
        call()
    looked_at.clear()


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_other_tensors_of_the_same_kinds_are_not_looked_at(looked_at, tensors, scheme):
    for calls in range(5):
        given = tensors()
        o, lse = cuattn.attention(*given, scheme=scheme, return_lse=True)
        check(o, given, scheme=scheme)
        assert o.is_contiguous()
        assert lse.shape == SHAPE[:3]
        assert looked_at == ["q", "k", "v"], calls


def test_tensors_of_other_kinds_are_looked_at(torch, looked_at, tensors):
    wide, memory = tensors((1, 2, 40, 128)), tensors((81 * 64,))
    kinds = [
        tensors(),
        tensors(dtype="float32"),
        tensors((1, 2, 41, 64)),
        [x[..., :64] for x in wide],
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors()],
        [x[4 : 4 + 80 * 64].view(SHAPE) for x in memory],
    ]
    for count, given in enumerate(kinds, 1):
        for _ in range(3):
            check(cuattn.attention(*given), given)
        assert len(looked_at) == 3 * count
    for given in reversed(kinds):
        check(cuattn.attention(*given), given)
    assert len(looked_at) == 3 * len(kinds)
    # One by one, beside two of a known kind.
    for i in range(3):
        given = [*kinds[0]]
        given[i] = tensors((1, 4 if i == 0 else 1, *SHAPE[2:]))[0]
        if i:
            with pytest.raises(ArgumentError):
                cuattn.attention(*given)
        else:
            check(cuattn.attention(*given), given)


def test_tensors_at_multiples_of_16_bytes_do_not_pass_for_others(looked_at, tensors):
    """Whichever were there first: kernels that load vectors are for these."""

    def given(first):
        return [x[first : first + 80 * 64].view(SHAPE) for x in tensors((81 * 64,))]

    remembered(lambda: cuattn.attention(*given(4)), looked_at)
    for _ in range(3):
        for first in (0, 4):
            arrays = given(first)
            check(cuattn.attention(*arrays), arrays)
        assert looked_at == ["q", "k", "v"]


def test_outputs_are_written_and_autograd_is_told(looked_at, torch, tensors):
    (out,) = tensors(count=1)
    for calls in range(5):
        given, version = tensors(), out._version
        assert cuattn.attention(*given, out=out) is out
        check(out, given)
        assert out._version == version + 1
        assert looked_at == ["q", "k", "v", "out"], calls
    with torch.no_grad():
        wants = torch.zeros(SHAPE, dtype=torch.float16, requires_grad=True)
        for wrong in (given[1], given[0].transpose(2, 3), wants):
            with pytest.raises(ArgumentError, match=r"^out"):
                cuattn.attention(*given, out=wrong)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_modes_make_no_difference(torch, looked_at, tensors, mode):
    given = tensors()
    remembered(lambda: cuattn.attention(*given), looked_at)
    for _ in range(3):
        with getattr(torch, mode)():
            check(cuattn.attention(*given), given)
        check(cuattn.attention(*given), given)
    assert looked_at == []


def test_gradients_are_refused_whatever_has_been_remembered(torch, looked_at, tensors):
    given = tensors()
    remembered(lambda: cuattn.attention(*given), looked_at)
    parameter = torch.nn.Parameter(given[1])
    with pytest.raises(ArgumentError, match=r"^k must be .*no_grad"):
        cuattn.attention(given[0], parameter, given[2])
    with torch.no_grad():
        for _ in range(4):
            check(cuattn.attention(given[0], parameter, given[2]), given)
    with pytest.raises(ArgumentError, match=r"^k must be .*no_grad"):
        cuattn.attention(given[0], parameter, given[2])
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given[0], given[1])
        with pytest.raises(ArgumentError, match=r"^q must be .*tangent"):
            cuattn.attention(dual, *given[1:])
        check(cuattn.attention(*given), given)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_what_is_no_plain_memory_is_refused_whatever_has_been_remembered(torch, looked_at, tensors):
    q, k, v = tensors()
    remembered(lambda: cuattn.attention(q, k, v), looked_at)

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise NotImplementedError

    nested = torch.nested.nested_tensor([k[0], k[0]])
    for wrong in (k.to_sparse(), nested, k.as_subclass(Wrapper)):
        with pytest.raises(ArgumentError, match=r"^k must be a plain tensor"):
            cuattn.attention(q, wrong, v)
    launched = []

    def call(x):
        launched.append(cuattn.attention(x[None], k, v))
        return x

    with pytest.raises(ArgumentError, match=r"^q must be a plain tensor"):
        torch.vmap(call)(q)
    assert launched == []
    negative = torch.complex(torch.zeros(SHAPE), torch.ones(SHAPE)).conj().imag
    kinds = [x.float() for x in (q, k, v)]
    remembered(lambda: cuattn.attention(*kinds), looked_at)
    for _ in range(3):
        o = cuattn.attention(*kinds[:2], negative)
        np.testing.assert_allclose(o.numpy(), -1, rtol=1e-2)


def test_work_is_on_pytorchs_stream(gpu, looked_at, tensors):
    streams = gpu._launches.streams
    for stream in (0, 77, 77, 1, 88, 0):
        gpu.stream = stream
        streams.clear()
        given = tensors()
        check(cuattn.attention(*given), given)
        assert set(streams) == {0 if stream == 1 else stream}
    assert looked_at == ["q", "k", "v"]


def test_work_is_on_the_gpu_of_the_tensors(torch, gpu, looked_at, tensors, monkeypatch):
    """Whichever is the current one, before the first call and after it."""
    entered = []

    class Device(contextlib.nullcontext):
        def __enter__(self):
            entered.append(gpu.ordinal)
            gpu.ordinal = self.enter_result

        def __exit__(self, *error):
            gpu.ordinal = entered[-1]

    cuda = gpu.cupy.cuda
    monkeypatch.setattr(cuda, "Device", Device, raising=False)
    monkeypatch.setattr(repeated_call, "cupy_module", lambda: gpu.cupy)
    monkeypatch.setattr(cuda.runtime, "getDevice", lambda: gpu.ordinal)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 1)
    asked = []
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda i: asked.append(i) or 0)
    launched = []
    launch = gpu._launches._launch
    monkeypatch.setattr(
        "cupy.cuda.driver.launchKernel", lambda *x: launched.append(gpu.ordinal) or launch(*x)
    )
    for gpu.ordinal in (0, 0, 1, 1, 0, 2):
        given, launched[:] = tensors(), []
        check(cuattn.attention(*given), given)
        assert set(launched) == {1}
    assert set(asked) == {1}
    assert looked_at == ["q", "k", "v"]
    assert entered == [0, 0, 0, 2]


def test_options_are_told_apart_from_equal_ones(looked_at, tensors):
    given = tensors()
    options = {"is_causal": True, "window_size": (1, 0), "scale": 1.0}
    remembered(lambda: cuattn.attention(*given, **options), looked_at)
    check(cuattn.attention(*given, **options), given, **options)
    assert looked_at == []
    for name, wrong in (("is_causal", 1), ("window_size", (True, 0)), ("scale", True)):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            cuattn.attention(*given, **{**options, name: wrong})
    check(cuattn.attention(*given, **{**options, "scale": 0.5}), given, **{**options, "scale": 0.5})


def test_quantized_operands_are_not_looked_at(looked_at, gpu, rng, torch):
    for calls in range(4):
        arrays = [rng.standard_normal(SHAPE).astype(np.float16) for _ in "qkv"]
        codes = [cuattn.quantize(arrays[0], operand="q"), *cuattn.quantize_kv(*arrays[1:])]
        out = torch.empty(SHAPE, dtype=torch.float16)
        assert cuattn.attention(*codes, out=out) is out
        check(out, map(torch.from_numpy, arrays))
        assert looked_at == ["out"], calls
    other = cuattn.quantize_kv(*arrays[1:])[1]
    with pytest.raises(ArgumentError, match=r"^v must be quantized together with k"):
        cuattn.attention(codes[0], codes[1], other, out=out)
    # What is pending on PyTorch's stream has to come before what is done on CuPy's.
    gpu.stream = 77
    looked_at.clear()
    with contextlib.suppress(AttributeError):  # the simulated CuPy has no events
        cuattn.attention(*codes, out=out)
    assert looked_at == ["out"]
