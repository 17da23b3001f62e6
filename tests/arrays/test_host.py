"""Arrays in host memory, of whatever strides, library and kind of memory."""

import sys
from types import ModuleType

import numpy as np
import pytest
from helpers.foreign import Foreign

import cuattn
from cuattn.arrays.host import look_on_host, new_on_host, to_host, write_on_host
from cuattn.arrays.view import CPU
from cuattn.errors import ArgumentError


class Placed(Foreign):
    """The same with another idea of where it is."""

    def __init__(self, array, device):
        super().__init__(array)
        self._device = device

    def __dlpack_device__(self):
        return self._device


ARRANGEMENTS = {
    "as it is": lambda x: x,
    "rows backwards": lambda x: x[:, ::-1],
    "all backwards": lambda x: x[::-1, ::-1, ::-1],
    "transposed": lambda x: x.transpose(2, 0, 1),
    # Not by broadcast_to, whose result is read-only, which NumPy 2.0 does not export.
    "broadcast": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (x.strides[0], 0, 4)),
    "one row": lambda x: np.lib.stride_tricks.as_strided(x, (1, 3), (2**60, 4)),
    "empty": lambda x: x[:, :0],
    "scalar": lambda x: x[1, 2, 3],
}


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_values_are_read_whatever_the_strides(rng, arrange):
    x = arrange(rng.standard_normal((4, 5, 6)).astype(np.float32))
    found = to_host(Foreign(np.asarray(x)), "q")
    np.testing.assert_array_equal(found.values, x)
    assert (found.dtype, found.on_gpu) == ("float32", False)


@pytest.mark.parametrize("name", ["as it is", "rows backwards", "all backwards", "transposed"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_are_written_whatever_the_strides(rng, name, dtype):
    memory = np.zeros((4, 5, 6), dtype)
    target = ARRANGEMENTS[name](memory)
    values = rng.standard_normal(target.shape)
    write_on_host(look_on_host(Foreign(target), "out"), values)
    np.testing.assert_array_equal(target, values.astype(dtype))


@pytest.mark.parametrize("backwards", [False, True])
def test_attention_takes_foreign_arrays_with_rows_backwards(rng, backwards):
    step = -1 if backwards else 1
    q, k, v = (rng.standard_normal((1, 2, 20, 16)).astype(np.float32)[:, :, ::step] for _ in "qkv")
    expected = cuattn.attention(q, k, v)
    memory = np.zeros_like(q)
    cuattn.attention(Foreign(q), Foreign(k), Foreign(v), out=Foreign(memory[:, :, ::step]))
    np.testing.assert_array_equal(memory[:, :, ::step], expected)


def test_pinned_memory_is_host_memory(rng):
    x = rng.standard_normal((1, 1, 8, 8)).astype(np.float32)
    pinned = Placed(x, (3, 0))
    np.testing.assert_array_equal(
        cuattn.attention(pinned, pinned, pinned), cuattn.attention(x, x, x)
    )
    with pytest.raises(ArgumentError, match=r"^stream must be None for arrays in host memory"):
        cuattn.attention(pinned, pinned, pinned, stream=0)


def test_a_capsule_from_elsewhere_than_the_array_says_is_not_read(rng):
    x = Placed(rng.standard_normal((1, 1, 8, 8)).astype(np.float32), (2, 0))
    with pytest.raises(ArgumentError, match=r"^q must be .*where its __dlpack_device__ says"):
        look_on_host(x, "q")


def test_masks_are_not_ignored(rng):
    x = rng.standard_normal((1, 1, 8, 8)).astype(np.float32)
    masked = np.ma.masked_array(x, x > 1)
    for call in (
        lambda: cuattn.attention(x, masked, x),
        lambda: cuattn.quantize(masked),
        lambda: cuattn.attention(x, x, x, out=masked),
        lambda: to_host(masked, "k"),
    ):
        with pytest.raises(ArgumentError, match=r"must be an array without a mask"):
            call()


def test_outputs_that_are_read_only_are_not_written(rng):
    q, k, v = (rng.standard_normal((1, 1, 8, 8)).astype(np.float32) for _ in "qkv")
    out = np.zeros_like(q)
    out.flags.writeable = False
    broadcast = np.broadcast_to(np.zeros((1, 1, 1, 8), np.float32), q.shape)
    for refused in (out, broadcast):
        with pytest.raises(ArgumentError, match=r"^out"):
            cuattn.attention(q, k, v, out=refused)
    assert not out.any()


def test_arrays_of_jax_are_not_written(rng):
    class Array(Foreign):
        __module__ = "jaxlib._jax"

    q, k, v = (rng.standard_normal((1, 1, 8, 8)).astype(np.float32) for _ in "qkv")
    memory = np.zeros_like(q)
    assert look_on_host(Array(memory), "out").readonly
    with pytest.raises(ArgumentError, match=r"^out must be writable: .*not of JAX"):
        cuattn.attention(q, k, v, out=Array(memory))
    cache = cuattn.KVCache(1, 1, 64, 16, device="cpu")
    wide = np.zeros((1, 1, 8, 64), np.float32)
    cache.append(wide, wide)
    with pytest.raises(ArgumentError, match=r"^out must be writable: .*not of JAX"):
        cache.attend(wide, out=Array(np.zeros_like(wide)))
    assert not memory.any()


def test_new_arrays_are_of_the_library_of_another():
    values = np.arange(6.0).reshape(2, 3)
    array = new_on_host(values.T, "float16", Foreign(values))
    assert (type(array), array.dtype, array.flags.c_contiguous) == (np.ndarray, "float16", True)
    np.testing.assert_array_equal(array, values.T)


def test_new_arrays_are_of_jax_where_its_array_is(monkeypatch):
    class Array:
        sharding = "there"

    jax = ModuleType("jax")
    jax.Array = Array
    jax.device_put = lambda x, where: (x.tolist(), where)
    monkeypatch.setitem(sys.modules, "jax", jax)
    assert new_on_host(np.ones(2), "float32", Array()) == ([1.0, 1.0], "there")
    assert isinstance(new_on_host(np.ones(2), "float32", np.ones(2)), np.ndarray)


def test_numpy_arrays_are_looked_at_in_place():
    x = np.zeros((3, 4), np.float16)[:, ::2]
    assert look_on_host(x, "q")[:-1] == (x.ctypes.data, (3, 2), (4, 2), "float16", (CPU, 0), False)


@pytest.mark.parametrize("x", [None, 3.0, [[1.0]], "q"])
def test_what_is_no_array_is_refused(x):
    with pytest.raises(ArgumentError, match=r"^q must be an array"):
        to_host(x, "q")


def test_other_types_are_refused():
    for x in (np.zeros(3, np.int8), Foreign(np.zeros(3, np.int8))):
        with pytest.raises(ArgumentError, match=r"^q.dtype must be one of"):
            to_host(x, "q")
