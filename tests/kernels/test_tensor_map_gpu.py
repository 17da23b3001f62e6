"""Tensor maps at work: TMA copies boxes through them, from their place in a kernel's arguments."""

from functools import cache
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.arrays.device import current_device
from cuattn.compile import launch, params
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers, Launch
from cuattn.compile.tensor_map import TensorMap
from cuattn.errors import UnsupportedError

pytest.importorskip("cupy")

# Copies one box to shared memory, and shared memory as it is to `out`.
KERNEL = """
#include "ptx/barriers.cuh"
#include "ptx/ldmatrix.cuh"

struct CopyParams {
  u8* out;
  TensorMap map;
  i32 row;
  i32 head;
};

extern "C" __global__ void copy(const __grid_constant__ CopyParams p) {
  constexpr int kBytes = 64 * 128;
  __shared__ alignas(1024) u8 box[kBytes];
  __shared__ u64 barrier;
  const u32 full = ptx::smem_address(&barrier);
  for (int i = threadIdx.x; i < kBytes; i += blockDim.x) box[i] = 0xee;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(kBytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.tensor.RANKd.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, COORDINATES}], [%5];" ::"r"(ptx::smem_address(box)),
        "l"(&p.map), "r"(0), "r"(p.row), "r"(p.head), "r"(full)
        : "memory");
  }
  ptx::mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < kBytes; i += blockDim.x) p.out[i] = box[i];
}
"""


@cache
def compiled(rank, arch):
    from cuattn.compile.nvrtc import compile_source

    coordinates = {2: "%3", 3: "%3, %4"}[rank]
    return compile_source(
        KERNEL.replace("RANK", str(rank)).replace("COORDINATES", coordinates), arch
    )


@pytest.mark.parametrize("rank", [2, 3])
def test_kernel_compiles(rank):
    assert compiled(rank, "90a").info["copy"].smem >= 64 * 128


@pytest.fixture
def copy(cupy, monkeypatch):
    """Copy the box of a map that begins at a row of a head; returns shared memory [row, byte]."""
    device = current_device()
    if int(device.compute_capability) < 90:
        pytest.skip("TMA needs compute capability 9.0")

    def load(spec, device):
        module = cupy.cuda.function.Module()
        module.load(compiled(spec.rank, device.arch).image)
        return module.get_function("copy")

    with_kernel = {**params.sources(), "copy.cuh": KERNEL}
    monkeypatch.setattr(params, "sources", lambda: with_kernel)
    monkeypatch.setattr(launch, "begin", lambda spec, device: None)
    monkeypatch.setattr(launch, "load", load)
    params.record.cache_clear()

    def run(x, row=0, head=0, **parts):
        spec = SimpleNamespace(
            params="CopyParams",
            params_file="copy.cuh",
            num_threads=128,
            smem_bytes=0,
            rank=len(parts["shape"]),
        )
        buffers = Buffers("x", "out")
        tensor_map = TensorMap(**parts, number=buffers["x"])
        values = {"out": buffers["out"], "map": tensor_map, "row": row, "head": head}
        out = cupy.full((64, 128), 0xDD, cupy.uint8)
        chain = Chain([Launch(spec, device, (1,), values)], buffers)
        chain((x.data.ptr, out.data.ptr), cupy.cuda.get_current_stream().ptr)
        return out.get()

    yield run
    params.record.cache_clear()


def image(x, row, swizzle=128):
    """Return what shared memory shall hold of the rows of x [row, 128 bytes] from one on."""
    expected = np.zeros((64, 128), np.uint8)
    for r in range(64):
        if 0 <= row + r < len(x):
            for c in range(8):
                place = c ^ (r % 8) if swizzle else c
                expected[r, 16 * place : 16 * place + 16] = x[row + r, 16 * c : 16 * c + 16]
    return expected


@pytest.mark.gpu
@pytest.mark.parametrize("swizzle", [128, 0])
@pytest.mark.parametrize("row", [0, 3, 40, 99, 100, -8])
def test_rows_are_swizzled_and_filled_with_zeros(cupy, rng, copy, swizzle, row):
    x = rng.integers(1, 256, (100, 128)).astype(np.uint8)
    found = copy(
        cupy.asarray(x),
        row,
        dtype="uint8",
        shape=(128, 100),
        strides=(128,),
        box=(128, 64),
        swizzle=swizzle,
    )
    np.testing.assert_array_equal(found, image(x, row, swizzle))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_heads_are_told_apart(cupy, rng, copy, dtype, layout, num_heads):
    """Strides may go down from axis to axis, and mean nothing where the size is 1."""
    shape = (num_heads, 100, 128) if layout == "HND" else (100, num_heads, 128)
    x = rng.integers(1, 256, shape).astype(np.uint8)
    heads = x if layout == "HND" else x.swapaxes(0, 1)
    for head in range(num_heads):
        found = copy(
            cupy.asarray(x),
            60,
            head,
            dtype=dtype,
            shape=(128 if dtype == "uint8" else 64, 100, num_heads),
            strides=(heads.strides[1], heads.strides[0] if num_heads > 1 else 0),
            box=(128 if dtype == "uint8" else 64, 64, 1),
            swizzle=128,
        )
        np.testing.assert_array_equal(found, image(heads[head], 60))


@pytest.mark.gpu
def test_narrow_rows_are_filled_with_zeros(cupy, rng, copy):
    """Channels beyond the head's, up to the size that has kernels."""
    x = np.zeros((64, 128), np.uint8)
    x[:, :80] = rng.integers(1, 256, (64, 80))
    parts = {"dtype": "float16", "shape": (40, 64), "strides": (80,)}
    found = copy(cupy.asarray(x[:, :80].copy()), **parts, box=(64, 64), swizzle=128)
    np.testing.assert_array_equal(found, image(x, 0))


WHOLE = {"dtype": "uint8", "shape": (128, 64), "strides": (128,), "box": (128, 64), "swizzle": 128}


@pytest.mark.gpu
def test_maps_follow_the_address(cupy, rng, copy):
    arrays = rng.integers(0, 256, (3, 64, 128)).astype(np.uint8)
    on_gpu = cupy.asarray(arrays)
    for i in (0, 1, 2, 0):
        np.testing.assert_array_equal(copy(on_gpu[i], **WHOLE), image(arrays[i], 0))


@pytest.mark.gpu
@pytest.mark.usefixtures("copy")
def test_new_thread_can_encode(cupy):
    x = cupy.zeros((64, 128), cupy.uint8)
    found = []
    thread = Thread(target=lambda: found.append(TensorMap(**WHOLE, number=1).encode(x.data.ptr)))
    thread.start()
    thread.join()
    assert [len(content) for content in found] == [128]


@pytest.mark.gpu
@pytest.mark.usefixtures("copy")
def test_driver_refuses_an_address_within_16_bytes(cupy):
    x = cupy.zeros((65, 128), cupy.uint8)
    with pytest.raises(UnsupportedError, match="CUDA_ERROR_INVALID_VALUE"):
        TensorMap(**WHOLE, number=1).encode(x.data.ptr + 8)
