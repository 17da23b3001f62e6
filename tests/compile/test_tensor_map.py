"""Tensor maps without a GPU: what is told to the driver, how often, and what is refused."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from simulated_gpu import GPU, SimulatedDriver, SimulatedLaunches, garbage, mapped

from cuattn.compile import launch, params, tensor_map
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers, Launch
from cuattn.compile.tensor_map import TensorMap, can_map
from cuattn.errors import ArgumentError, NoGPUError, UnsupportedError

HEADER = """
struct Inner { i32 rows; TensorMap v; };
struct MappedParams {
  void* o;
  TensorMap q;
  f32 scale;
  Inner inner;
  TensorMap unused;
  const f32* last;
};
"""

# As of Q [head, token, head_dim] in layout NHD, 16-bit.
PARTS = {
    "dtype": "float16",
    "shape": (64, 300, 4),
    "strides": (4 * 128, 128),
    "box": (64, 128, 1),
    "swizzle": 128,
    "number": 1,
}


def make(**parts):
    return TensorMap(**{**PARTS, **parts})


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(tensor_map, "_driver", lambda: SimulatedDriver)
    monkeypatch.setattr(SimulatedDriver, "calls", 0)
    tensor_map._encoded.cache_clear()
    yield SimulatedDriver
    tensor_map._encoded.cache_clear()


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("dtype", "kind"), [("uint8", "u1"), ("float16", "f2"), ("bfloat16", "u2")]
)
def test_driver_is_told_the_array(dtype, kind):
    x = garbage((300, 4, 64), np.dtype(kind))
    x[...] = np.arange(x.size).reshape(x.shape) % 251
    found = mapped(make(dtype=dtype, strides=x.strides[:2]).encode(x.ctypes.data))
    np.testing.assert_array_equal(found.x, x.swapaxes(0, 1))
    assert found.x.strides == (x.strides[1], x.strides[0], x.itemsize)
    assert (found.box, found.swizzle) == ((64, 128, 1), 128)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("stride", [0, -128, 3, 2**50])
def test_stride_of_an_axis_of_size_1_does_not_count(stride):
    found = mapped(make(shape=(60, 300, 1), strides=(128, stride)).encode(1 << 40))
    assert found.x.strides == (128, 128, 2)
    assert mapped(make(shape=(60, 1, 4), strides=(stride, 256)).encode(16)).x.shape == (4, 1, 60)


def test_each_address_is_encoded_once(driver):
    first, same, other = make(), make(number=2), make(box=(64, 64, 1))
    contents = [m.encode(a) for _ in range(3) for m in (first, same, other) for a in (16, 32)]
    assert driver.calls == 4
    assert len(set(contents)) == 4
    assert all(len(content) == 128 for content in contents)


@pytest.mark.usefixtures("driver")
def test_cache_is_bounded():
    limit = tensor_map._encoded.cache_info().maxsize
    for address in range(16, 16 * (limit + 10), 16):
        make().encode(address)
    assert tensor_map._encoded.cache_info().currsize == limit


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dtype": "float32"}, "^dtype must be one of"),
        ({"swizzle": 16}, "^swizzle must be one of"),
        ({"shape": (64, 300)}, "^shape and strides in bytes must be what TMA can address"),
        ({"strides": (512, 0)}, "^shape and strides in bytes must be"),
        ({"box": (64, 128)}, "^box must be 3 sizes from 1 to 256"),
        ({"box": (64, 257, 1)}, "^box must be 3 sizes"),
        ({"box": (64, 0, 1)}, "^box must be 3 sizes"),
        ({"box": (4, 128, 1)}, "^box must be a multiple of 16, at most 128, along"),
        ({"box": (72, 128, 1)}, "^box must be a multiple of 16, at most 128, along"),
        ({"box": (4, 128, 1), "swizzle": 0}, "^box must be a multiple of 16 along"),
    ],
)
def test_what_tma_lacks_is_named(parts, message):
    with pytest.raises(ArgumentError, match=message):
        make(**parts)


@pytest.mark.usefixtures("driver")
def test_rows_longer_than_the_span_need_no_swizzle():
    assert mapped(make(shape=(256, 3, 1), box=(256, 8, 1), swizzle=0).encode(16)).swizzle == 0


@pytest.mark.parametrize(
    ("shape", "strides", "alignment", "itemsize", "answer"),
    [
        ((128,), (), 16, 1, True),
        ((128, 70), (128,), 16, 1, True),
        ((128, 70), (128,), 256, 1, True),
        ((128, 70), (128,), 8, 1, False),
        ((128, 70), (136,), 16, 1, False),
        ((128, 70), (-128,), 16, 1, False),
        ((128, 70), (0,), 16, 1, False),
        ((128, 1), (0,), 16, 1, True),
        ((128, 1), (-3,), 16, 1, True),
        ((128, 70), (2**40 - 16,), 16, 1, True),
        ((128, 70), (2**40,), 16, 1, False),
        ((128, 70), (112,), 16, 1, False),
        ((64, 70), (112,), 16, 2, False),
        ((64, 70, 4), (512, 128), 16, 2, True),
        ((64, 70, 4), (512, 0), 16, 2, False),
        ((64, 70, 4), (512,), 16, 2, False),
        ((64, 0, 4), (512, 128), 16, 2, False),
        ((16, 2, 2, 2, 2), (16, 32, 64, 128), 16, 1, True),
        ((16, 2, 2, 2, 2, 2), (16, 32, 64, 128, 256), 16, 1, False),
        ((16, 2**32), (16,), 16, 1, True),
        ((16, 2**32 + 1), (16,), 16, 1, False),
        ((), (), 16, 1, False),
    ],
)
def test_can_map(shape, strides, alignment, itemsize, answer):
    assert can_map(shape, strides, alignment, itemsize) is answer


def test_refusal_names_the_map_and_the_error(driver):
    with pytest.raises(UnsupportedError, match=r"float16.*\(64, 300, 4\).*0x8: CUDA_ERROR_SIM.*1"):
        make().encode(8)
    with pytest.raises(UnsupportedError):
        make().encode(8)
    assert driver.calls == 2


@pytest.mark.parametrize("error", [3, 201])
def test_first_use_of_a_thread_makes_its_context(driver, monkeypatch, error):
    answers, made = iter([error, 0]), []

    def encode(*arguments):
        return next(answers) or driver.cuTensorMapEncodeTiled(*arguments)

    fake = SimpleNamespace(cuTensorMapEncodeTiled=encode)
    monkeypatch.setattr(tensor_map, "_driver", lambda: fake)
    monkeypatch.setattr(tensor_map, "make_context", lambda: made.append(True))
    assert mapped(make().encode(16)).box == (64, 128, 1)
    assert made == [True]


@pytest.fixture
def library(monkeypatch):
    """What ctypes shall find as libcuda."""
    found = SimpleNamespace(names=[], answer=None)

    def load(name):
        found.names.append(name)
        if found.answer is None:
            raise OSError(f"{name}: cannot open shared object file")
        return found.answer

    monkeypatch.setattr(ctypes, "CDLL", load)
    tensor_map._driver.cache_clear()
    yield found
    tensor_map._driver.cache_clear()


def test_missing_driver_is_named(library):
    tensor_map._encoded.cache_clear()
    with pytest.raises(NoGPUError, match=r"no NVIDIA driver: libcuda\.so\.1"):
        make().encode(16)


def test_driver_without_tensor_maps_is_named(library):
    library.answer = SimpleNamespace()
    with pytest.raises(UnsupportedError, match=r"older than CUDA 12\.0"):
        make().encode(16)


def test_driver_is_loaded_once(library):
    library.answer = SimpleNamespace(
        cuTensorMapEncodeTiled=SimpleNamespace(), cuGetErrorName=SimpleNamespace()
    )
    assert tensor_map._driver() is tensor_map._driver() is library.answer
    assert library.names == ["libcuda.so.1"]
    assert len(library.answer.cuTensorMapEncodeTiled.argtypes) == 12


@pytest.fixture
def mapped_launch(driver, monkeypatch):
    """Make launches of MappedParams, and the list of what their kernel has been given."""
    pytest.importorskip("cupy")
    seen = []
    text = {"mapped.cuh": HEADER}
    monkeypatch.setattr(params, "sources", lambda: text)
    params.record.cache_clear()
    dtype = params.record("MappedParams", "mapped.cuh")

    def kernel(grid, block, struct, smem):
        seen.append(np.frombuffer(ctypes.string_at(struct, dtype.itemsize), dtype)[0])

    loaded = SimulatedLaunches(monkeypatch).kernel(kernel)
    monkeypatch.setattr(launch, "begin", lambda spec, device: None)
    monkeypatch.setattr(launch, "load", lambda spec, device: loaded)
    spec = SimpleNamespace(
        params="MappedParams", params_file="mapped.cuh", num_threads=32, smem_bytes=0
    )
    yield lambda values, buffers: Chain([Launch(spec, GPU, (1,), values)], buffers), seen
    params.record.cache_clear()


def test_launch_writes_the_maps_of_the_call(mapped_launch, driver, monkeypatch):
    prepare, seen = mapped_launch
    buffers = Buffers("q", "v", "o")
    part = buffers.take(100)
    call = prepare(
        {
            "o": buffers["o"],
            "q": make(number=buffers["q"]),
            "scale": 0.5,
            "inner": {"rows": 7, "v": make(dtype="uint8", strides=(256, 64), number=part)},
            "unused": None,
            "last": buffers["v"],
        },
        buffers,
    )
    assert driver.calls == 0
    for base in (1 << 40, 1 << 41, 1 << 40):
        place = SimpleNamespace(ptr=base + 4096)
        monkeypatch.setattr("cupy.cuda.alloc", lambda nbytes, place=place: place)
        call((base, base + 16, base + 32), 0)
        values = seen[-1]
        assert (values["o"], values["last"]) == (base + 32, base + 16)
        assert (values["scale"], values["inner"]["rows"]) == (0.5, 7)
        for content, address in ((values["q"], base), (values["inner"]["v"], base + 4096)):
            assert mapped(content.tobytes()).x.ctypes.data == address
        assert mapped(values["inner"]["v"].tobytes()).x.dtype == np.uint8
        assert values["unused"].tobytes() == bytes(128)
    assert driver.calls == 4
