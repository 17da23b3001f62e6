"""The caller's side of a call on the GPU, with stand-ins for CuPy, PyTorch and JAX."""

import sys
from collections import deque
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cuattn.arrays import caller as caller_module
from cuattn.arrays.caller import Caller, device_of, numpy_dtype, on_device
from cuattn.arrays.pytorch import look_at_plain, maker_of_tensors
from cuattn.arrays.view import CPU, CUDA
from cuattn.errors import ArgumentError, NoGPUError, UnsupportedError

pytest.importorskip("cupy")

ADDRESS = 0x7000_0000
CUPYS, TORCHS = 55, 77


class Array:
    """What is asked of a `cupy.ndarray`."""

    def __init__(self, shape=(2, 3), dtype="float16", *, ptr=ADDRESS, device_id=0):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.strides = np.empty(shape, dtype).strides
        self.data = SimpleNamespace(ptr=ptr, device_id=device_id)

    def __dlpack_device__(self):
        return (CUDA, self.data.device_id)


class Event:
    def __init__(self, log):
        self._log = log
        self.done = False

    def record(self, stream=None):
        self._log.append(("record", None if stream is None else stream.ptr))


class Stream:
    def __init__(self, ptr, cuda):
        self.ptr, self._cuda = ptr, cuda

    def wait_event(self, event):
        self._cuda.log.append(("wait", self.ptr))

    def __enter__(self):
        self._before, self._cuda.current = self._cuda.current, self.ptr

    def __exit__(self, *error):
        self._cuda.current = self._before


class Cuda:
    """`cupy.cuda` on a computer with two GPUs, the first of which is the current one."""

    def __init__(self):
        self.log, self.events = [], []
        self.current = CUPYS
        self.capturing = False
        self.runtime = SimpleNamespace(getDevice=lambda: 0)
        self.Stream = SimpleNamespace(
            from_external=lambda x: Stream(x.__cuda_stream__()[1], self),
        )
        self.Device = lambda ordinal: ("device", ordinal)
        self.Event = self._new_event

    def get_current_stream(self):
        return SimpleNamespace(ptr=self.current)

    def _new_event(self, disable_timing):
        assert disable_timing
        self.events.append(Event(self.log))
        return self.events[-1]


class Dtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


class Tensor:
    """What is asked of a `torch.Tensor`."""

    layout = "strided"
    requires_grad = is_nested = False
    __torch_dispatch__ = tangent = None

    def __init__(self, shape=(2, 3), dtype="float16", ptr=ADDRESS, index=0, negative=False):
        self.shape, self.dtype = shape, Dtype(dtype)
        self.device = f"cuda:{index}"
        self.is_cuda, self.is_cpu = True, False
        self._ptr, self._index, self._negative = ptr, index, negative

    def data_ptr(self):
        return self._ptr

    def stride(self):
        return (3, 1)

    def get_device(self):
        return self._index

    def is_neg(self):
        return self._negative

    def is_inference(self):
        return False

    def resolve_neg(self):
        return Tensor(self.shape, self.dtype.name, self._ptr + 0x1000)

    def detach(self):
        return Tensor(self.shape, self.dtype.name, self._ptr)

    def __dlpack_device__(self):
        raise AssertionError("takes microseconds")

    def __dlpack__(self, **options):
        raise AssertionError("takes microseconds")


class Parameter(Tensor):
    requires_grad = True


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    module = SimpleNamespace(ndarray=Array, cuda=cuda)
    monkeypatch.setattr(caller_module, "cupy_module", lambda: module)
    monkeypatch.setattr("cupy.cuda.get_current_stream", cuda.get_current_stream)
    monkeypatch.setattr("cupy.cuda.runtime.streamIsCapturing", lambda stream: cuda.capturing)
    monkeypatch.setattr(caller_module, "_in_use", deque())
    caller_module.stream_at.cache_clear()
    yield cuda
    caller_module.stream_at.cache_clear()


@pytest.fixture
def torch(monkeypatch):
    torch = ModuleType("torch")
    torch.grad = True
    torch.Tensor, torch.strided = Tensor, "strided"
    torch.nn = SimpleNamespace(Parameter=Parameter)
    torch.float16, torch.float32 = Dtype("float16"), Dtype("float32")
    torch.version = SimpleNamespace(hip=None)
    torch.is_grad_enabled = lambda: torch.grad
    torch.autograd = SimpleNamespace(
        forward_ad=SimpleNamespace(unpack_dual=lambda x: SimpleNamespace(tangent=x.tangent))
    )
    torch.stream = TORCHS
    torch._C = SimpleNamespace(_cuda_getCurrentRawStream=lambda ordinal: torch.stream)
    torch.contiguous_format = "contiguous"
    torch.empty = lambda shape, dtype, device: Tensor(shape, dtype.name, ptr=0x9000)
    torch.empty_like = lambda x, memory_format: Tensor(x.shape, x.dtype.name, ptr=0xA000)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_arrays_on_the_calls_own_stream_are_not_handed_over(cuda, torch):
    for first, stream in ((Array(), CUPYS), (Tensor(), TORCHS)):
        with Caller(first, None) as caller:
            assert caller.look(first, "q").ptr == ADDRESS
            assert cuda.current == stream
        assert cuda.current == CUPYS
    assert cuda.log == []


@pytest.mark.parametrize(
    ("first", "other", "of_call", "of_other"),
    [(Array(), Tensor(), CUPYS, TORCHS), (Tensor(), Array(), TORCHS, CUPYS)],
    ids=["cupy first", "torch first"],
)
def test_the_call_waits_once_for_the_stream_of_each_library(
    cuda, torch, first, other, of_call, of_other
):
    with Caller(first, None) as caller:
        for x in (first, other, other):
            caller.look(x, "x")
        assert cuda.log == [("record", of_other), ("wait", of_call)]
        cuda.log.clear()
    # What is not of the call's library is kept until the GPU has passed the end of the call.
    assert cuda.log == [("record", None)]
    [(event, kept)] = caller_module._in_use
    assert event is cuda.events[-1]
    assert [view.owner for view in kept] == [other, other]


def test_tensors_are_used_on_cupys_stream_of_each_thread(cuda, torch):
    # DLPack's producer in PyTorch refuses this one, whose handle is 2.
    cuda.current = 2
    caller = Caller(Array(), None)
    caller.look(Tensor(), "k")
    assert cuda.log == [("record", TORCHS), ("wait", 2)]


@pytest.mark.parametrize("stream", [0, 1])
def test_the_legacy_stream_has_two_names(cuda, torch, stream):
    cuda.current = torch.stream = 0
    for first in (Array(), Tensor()):
        with Caller(first, stream) as caller:
            caller.look(first, "q")
    assert cuda.log == []


def test_a_stream_of_the_callers_waits_for_both(cuda, torch):
    with Caller(Array(), 99) as caller:
        caller.look(Array(), "q")
        caller.look(Tensor(), "k")
        assert cuda.current == 99
    waits = [("record", CUPYS), ("wait", 99), ("record", TORCHS), ("wait", 99), ("record", None)]
    assert cuda.log == waits


def test_a_captured_stream_waits_for_nothing(cuda, torch):
    cuda.capturing = True
    with Caller(Array(), 99) as caller:
        caller.look(Array(), "q")
        caller.look(Tensor(), "k")
    assert cuda.log == []
    assert not caller_module._in_use


def test_an_array_of_another_gpu_is_seen_and_not_waited_for(cuda, torch):
    caller = Caller(Array(), None)
    assert caller.look(Tensor(index=1), "k").device == (CUDA, 1)
    assert caller.look(Array(device_id=1), "v").device == (CUDA, 1)
    assert cuda.log == []


def test_other_arrays_are_asked_by_dlpack(cuda, monkeypatch):
    asked = []

    def view(x, stream, name):
        asked.append((x, stream, name))
        return "seen"

    monkeypatch.setattr(caller_module, "view", view)
    with Caller(Array(), None) as caller:
        assert caller.look("foreign", "k") == "seen"
    assert asked == [("foreign", CUPYS, "k")]
    assert [kept for _, kept in caller_module._in_use] == [["seen"]]


def test_arrays_are_let_go_as_soon_as_the_gpu_is_done_with_them(cuda, monkeypatch):
    monkeypatch.setattr(caller_module, "view", lambda x, stream, name: x)

    def call(x):
        with Caller(Array(), None) as caller:
            caller.look(x, "k")

    call("first")
    call("second")
    assert [kept for _, kept in caller_module._in_use] == [["first"], ["second"]]
    # In order: the second is kept as long as the first is in use.
    cuda.events[1].done = True
    call("third")
    assert [kept for _, kept in caller_module._in_use] == [["first"], ["second"], ["third"]]
    cuda.events[0].done = True
    call("fourth")
    assert [kept for _, kept in caller_module._in_use] == [["third"], ["fourth"]]


@pytest.mark.parametrize("make", [Array, Tensor])
def test_a_null_address_is_refused(cuda, torch, make):
    caller = Caller(Array(), None)
    with pytest.raises(ArgumentError, match=r"^k must be .*its address is 0"):
        caller.look(make(ptr=0), "k")
    assert caller.look(make((0, 3), ptr=0), "k").shape == (0, 3)


@pytest.mark.parametrize(("dtype", "step"), [("float16", 17), ("float32", 18), ("float16", -17)])
def test_elements_are_whole_elements_apart(cuda, dtype, step):
    """Records of bytes that are looked at as another type may have strides that are not."""
    x = Array((2, 3), dtype)
    x.strides = (step, x.dtype.itemsize)
    with pytest.raises(ArgumentError, match=rf"^k must be of elements .* bytes apart, not {step}"):
        Caller(Array(), None).look(x, "k")
    for shape in ((1, 3), (2, 0)):  # of which no such step is taken
        x.shape = shape
        assert Caller(Array(), None).look(x, "k").shape == shape


def test_a_subclass_of_cupys_arrays_is_one(cuda):
    class Quantity(Array):
        unit = "m"

    x = Quantity()
    assert Caller(x, None).look(x, "q")[:3] == (ADDRESS, (2, 3), (3, 1))


@pytest.mark.parametrize("make", [Array, Tensor])
def test_outputs_are_of_the_library_of_the_first_array(cuda, torch, make):
    caller = Caller(make(), None)
    view = caller.empty((4, 5), "float32")
    assert type(view.owner) is make
    assert (view.shape, view.dtype) == ((4, 5), "float32")
    assert caller.deliver(view) is view.owner
    assert caller.deliver(None) is None


def test_tensors_like_the_first_one_are_made_like_it(cuda, torch):
    first = Tensor()
    first.dtype = torch.float16
    caller = Caller(first, None)
    like = caller.empty((2, 3), "float16")
    assert (like.ptr, like.shape, like.dtype, like.device) == (0xA000, (2, 3), "float16", (CUDA, 0))
    for shape, dtype in (((2, 4), "float16"), ((2, 3), "float32")):
        made = caller.empty(shape, dtype)
        assert (made.ptr, made.shape, made.dtype) == (0x9000, shape, dtype)

    class Wrapper(Tensor):
        __torch_dispatch__ = "own"

    # As in a mode in which PyTorch makes others than it was asked for.
    torch.empty = torch.empty_like = lambda *args, **options: Wrapper()
    for shape in ((2, 3), (2, 4)):
        with pytest.raises(ArgumentError, match=r"^out must be a plain tensor.*not Wrapper"):
            caller.empty(shape, "float16")


def test_outputs_are_delivered_to_jax(cuda, monkeypatch):
    jax = ModuleType("jax")
    jax.Array = type("Array", (), {})
    monkeypatch.setitem(sys.modules, "jax", jax)
    of_jax = SimpleNamespace(from_dlpack=lambda x: ("of JAX", x))
    monkeypatch.setitem(sys.modules, "jax.dlpack", of_jax)
    made = SimpleNamespace(owner="o")
    assert Caller(jax.Array(), None).deliver(made) == ("of JAX", "o")
    assert Caller(jax.Array(), None).deliver(None) is None
    assert Caller(Array(), None).deliver(made) == "o"


def test_gradients_are_refused_unless_they_are_off(cuda, torch):
    caller = Caller(Tensor(), None)
    x = Tensor()
    x.requires_grad = True
    with pytest.raises(ArgumentError, match=r"^v must be .*torch\.no_grad\(\).*detach\(\)"):
        caller.look(x, "v")
    torch.grad = False
    view = caller.look(x, "v")
    assert (view.ptr, view.readonly) == (ADDRESS, True)
    assert not caller.look(Tensor(), "v").readonly


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [("tangent", "dx", "without a tangent"), ("shape", (Tensor(), 3), "sizes are numbers")],
)
def test_what_would_miss_the_call_is_refused(cuda, torch, attribute, value, words):
    """Forward-mode differentiation, and `torch.jit.trace`, in which sizes are tensors."""
    x = Tensor()
    setattr(x, attribute, value)
    with pytest.raises(ArgumentError, match=f"^q must be .*{words}"):
        Caller(Tensor(), None).look(x, "q")


def test_what_is_negated_when_it_is_read_is_copied(cuda, torch):
    view = Caller(Tensor(), None).look(Tensor(negative=True), "k")
    assert (view.ptr, view.readonly) == (ADDRESS + 0x1000, True)


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [("layout", "torch.sparse_coo", "not sparse_coo"), ("is_nested", True, "not nested")],
)
def test_tensors_that_are_no_plain_memory_are_refused(cuda, torch, attribute, value, words):
    x = Tensor()
    setattr(x, attribute, value)
    with pytest.raises(ArgumentError, match=f"^k must be a plain tensor.*{words}"):
        Caller(Tensor(), None).look(x, "k")


def test_subclasses_with_a_dispatch_of_their_own_are_refused(cuda, torch):
    class Wrapper(Tensor):
        __torch_dispatch__ = "own"

    class WithMethods(Tensor):
        pass

    caller = Caller(Tensor(), None)
    with pytest.raises(ArgumentError, match=r"^q must be a plain tensor.*not Wrapper"):
        caller.look(Wrapper(), "q")
    assert caller.look(WithMethods(), "q").ptr == ADDRESS


def test_tensors_without_storage_are_refused(cuda, torch, monkeypatch):
    def raises(self):
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    monkeypatch.setattr(Tensor, "data_ptr", raises)
    with pytest.raises(ArgumentError, match=r"^q must be .*doesn't have storage"):
        Caller(Tensor(), None).look(Tensor(), "q")


def looked_at(*tensors):
    """Return the addresses and the keys of tensors that are plain, else None."""
    key, addresses = [], []
    plain = all(look_at_plain(x, key, addresses) for x in tensors)
    return (addresses, key) if plain else None


def test_plain_tensors_are_known_by_address_and_kind(torch):
    x, y = Tensor(), Tensor(ptr=ADDRESS + 24, index=1)
    addresses, key = looked_at(x, y)
    assert addresses == [ADDRESS, ADDRESS + 24]
    assert key == [(2, 3), (3, 1), x.dtype, 0, 0, (2, 3), (3, 1), y.dtype, 1, 8]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("is_cuda", False), ("requires_grad", True), ("_negative", True), ("_ptr", 0)],
)
def test_tensors_that_need_a_closer_look_are_not_plain(torch, attribute, value):
    x = Tensor()
    setattr(x, attribute, value)
    assert looked_at(Tensor(), x) is None


def test_parameters_are_plain_where_no_gradients_are_recorded(torch):
    """Such as the sinks of a model."""
    x, sinks = Tensor(), Parameter(ptr=ADDRESS + 16)
    assert looked_at(x, sinks) is None
    torch.grad = False
    assert looked_at(x, sinks)[0] == [ADDRESS, ADDRESS + 16]


@pytest.mark.parametrize("method", ["data_ptr", "stride"])
def test_what_has_no_storage_or_no_strides_is_not_plain(torch, monkeypatch, method):
    def raises(self):
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    monkeypatch.setattr(Tensor, method, raises)
    assert looked_at(Tensor()) is None


@pytest.mark.parametrize(
    ("strides", "shape", "dtype", "ptr"),
    [
        ((3, 1), (2, 3), "float16", 0xA000),
        ((1, 2), (2, 3), "float16", 0xB000),
        ((3, 1), (2, 4), "float16", 0x9000),
        ((3, 1), (2, 3), "float32", 0x9000),
    ],
)
def test_outputs_are_contiguous_whatever_the_input_is(torch, strides, shape, dtype, ptr):
    def empty_like(x, memory_format=None):
        made = Tensor(x.shape, x.dtype.name, ptr=0xA000 if memory_format is None else 0xB000)
        made.stride = x.stride if memory_format is None else lambda: (3, 1)
        return made

    torch.empty_like = empty_like
    like = Tensor()
    like.dtype = torch.float16
    like.stride = lambda: strides
    make = maker_of_tensors(like, shape, dtype)
    x, address = make(like)
    assert (x.shape, x.dtype.name, address) == (shape, dtype, ptr)

    class Traced(Tensor):
        pass

    torch.empty_like = torch.empty = lambda x, **given: Traced()
    assert maker_of_tensors(like, shape, dtype)(like) is None


class On:
    def __init__(self, *device):
        self._device = device

    def __dlpack_device__(self):
        return self._device


@pytest.mark.parametrize(
    ("given", "device"),
    [
        (On(CUDA, 3), (CUDA, 3)),
        (On(13, 3), (CUDA, 3)),
        (On(3, 1), (CPU, 0)),
        (On(CPU, 0), (CPU, 0)),
        (On(10, 2), (10, 2)),
    ],
    ids=["gpu", "managed", "pinned", "host", "rocm"],
)
def test_device_of_arrays(given, device):
    assert device_of(given, "q") == device


def test_arrays_of_cupy_know_where_they_are(cuda, monkeypatch):
    monkeypatch.setattr(Array, "__dlpack_device__", lambda x: (10, 0))  # takes microseconds
    runtime = SimpleNamespace(is_hip=False)
    cupy = SimpleNamespace(ndarray=Array, cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert device_of(Array(device_id=1), "q") == (CUDA, 1)
    runtime.is_hip = True
    assert device_of(Array(device_id=1), "q") == (10, 0)


def test_device_of_tensors(torch):
    x = Tensor(index=2)
    assert device_of(x, "q") == (CUDA, 2)
    torch.version.hip = "6.0"
    with pytest.raises(ArgumentError, match=r"^q must be on an NVIDIA GPU.*not on cuda:2"):
        device_of(x, "q")
    x.is_cuda, x.is_cpu = False, True
    assert device_of(x, "q") == (CPU, 0)
    x.is_cpu, x.device = False, "meta"
    with pytest.raises(ArgumentError, match=r"^q must be .*in host memory, not on meta"):
        device_of(x, "q")


@pytest.mark.parametrize("x", [None, 1.0, [1.0], On(), On(CUDA)])
def test_what_is_no_array_is_nowhere(x):
    with pytest.raises(ArgumentError, match=r"^q must be an array of CuPy, PyTorch, JAX or NumPy"):
        device_of(x, "q")


def test_the_current_device_is_entered_without_a_switch(cuda):
    with on_device(0):
        pass
    assert on_device(1) == ("device", 1)


def test_bfloat16_needs_a_package_only_where_there_is_no_other_way(monkeypatch):
    assert numpy_dtype("float16") == np.float16
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    numpy_dtype.cache_clear()
    with pytest.raises(UnsupportedError, match="ml_dtypes"):
        numpy_dtype("bfloat16")
    numpy_dtype.cache_clear()


def test_an_array_on_a_gpu_that_a_process_cannot_use_says_so():
    class CudaError(RuntimeError):
        status = 3

    class OnGPU:
        def __init__(self, error):
            self.error = error

        def __dlpack_device__(self):
            raise self.error

    with pytest.raises(NoGPUError, match="initialization error"):
        device_of(OnGPU(CudaError("initialization error")), "q")
    with pytest.raises(RuntimeError, match="of the array's own"):
        device_of(OnGPU(RuntimeError("of the array's own")), "q")
