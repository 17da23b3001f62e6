"""DLPack capsules made by hand: every field that the reader has to get right, without a GPU."""

import ctypes
import gc
import typing
import weakref

import numpy as np
import pytest

from cuattn.arrays import dlpack
from cuattn.arrays import view as view_of
from cuattn.arrays.view import CPU, CUDA, View
from cuattn.errors import ArgumentError, UnsupportedError

# The structures of dlpack.h, written independently of the reader's.


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
# A function of our own: other libraries change the types of that of `ctypes.pythonapi`.
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Producer:
    """An array on GPU 3 at an address of its own; keyword arguments change single fields."""

    alive: typing.ClassVar = []

    def __init__(
        self,
        shape=(2, 4, 8, 16),
        strides=None,
        dtype=(2, 16),
        *,
        data=0x7000_0000,
        offset=0,
        lanes=1,
        readonly=False,
        version=(1, 1),
        name=None,
        device=(CUDA, 3),
    ):
        self.shape, self.dtype = shape, f"DLPack {dtype}"
        self.device = device
        self.version = version
        self.name = name or (b"dltensor_versioned" if version else b"dltensor")
        self.asked = []
        self.freed = 0
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = strides and (ctypes.c_int64 * len(strides))(*strides)
        tensor = Tensor(
            data,
            Device(*device),
            len(shape),
            DataType(*dtype, lanes),
            self._shape,
            self._strides,
            offset,
        )
        if version:
            self._managed = ManagedVersioned(*version, None, None, int(readonly), tensor)
        else:
            self._managed = Managed(tensor, None, None)
        self._destructor = DESTRUCTOR(self._free)
        # The destructor has to outlive its capsule, which the traceback of an error may hold.
        Producer.alive.append(self)

    def _free(self, _):
        self.freed += 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if not self.version and "max_version" in options:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.asked.append(options)
        return new_capsule(ctypes.addressof(self._managed), self.name, self._destructor)


@pytest.mark.parametrize("version", [None, (1, 0), (1, 3)], ids=["v0", "v1.0", "v1.3"])
def test_every_field_arrives(version):
    producer = Producer(
        (2, 4, 8, 16), (512, 128, 16, 1), (4, 16), data=0x7FFF_0000_0000, offset=48, version=version
    )
    view = dlpack.view(producer, 1)
    assert view[:-1] == (
        0x7FFF_0000_0000 + 48,
        (2, 4, 8, 16),
        (512, 128, 16, 1),
        "bfloat16",
        (CUDA, 3),
        False,
    )


@pytest.mark.parametrize("version", [None, (1, 0)], ids=["v0", "v1"])
@pytest.mark.parametrize(
    ("code", "bits", "name"),
    [
        (0, 8, "int8"),
        (0, 16, "int16"),
        (0, 32, "int32"),
        (0, 64, "int64"),
        (1, 8, "uint8"),
        (1, 16, "uint16"),
        (1, 32, "uint32"),
        (1, 64, "uint64"),
        (2, 16, "float16"),
        (2, 32, "float32"),
        (2, 64, "float64"),
        (4, 16, "bfloat16"),
        (6, 8, "bool"),
        (10, 8, "float8_e4m3fn"),
        (12, 8, "float8_e5m2"),
    ],
)
def test_dtype_is_named(code, bits, name, version):
    assert dlpack.view(Producer(dtype=(code, bits), version=version)).dtype == name


@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [((0, 4), 1), ((3, 64), 1), ((5, 64), 1), ((7, 8), 1), ((17, 4), 1), ((2, 16), 2)],
    ids=["int4", "handle", "complex", "e3m4", "e2m1", "half2"],
)
def test_unknown_dtype_is_refused(dtype, lanes):
    producer = Producer(dtype=dtype, lanes=lanes)
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "q")
    names = sorted(dlpack._DTYPES.values())
    found = f"DLPack code {dtype[0]}, {dtype[1]} bits, lanes {lanes}"
    expected = ArgumentError("q", producer, f"of one of the dtypes {names} ({found})")
    assert str(error.value) == str(expected)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 4, 8, 16), (512, 16, 64, 1)),
        ((2, 4, 8, 16), (0, 0, 16, 1)),
        ((8,), (-3,)),
        ((2, 3), (1, 1 << 40)),
        ((), ()),
    ],
    ids=["transposed", "broadcast", "negative", "far apart", "scalar"],
)
def test_strides_are_taken_as_they_are(shape, strides):
    view = dlpack.view(Producer(shape, strides))
    assert (view.shape, view.strides) == (shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 4, 8, 16), (512, 128, 16, 1)), ((5,), (1,)), ((), ()), ((2, 0, 3), (0, 3, 1))],
)
def test_absent_strides_mean_row_major(shape, strides):
    assert dlpack.view(Producer(shape, None)).strides == strides


def test_array_without_elements_may_have_no_address():
    view = dlpack.view(Producer((2, 0, 8, 16), (0, 128, 16, 1), data=None))
    assert (view.ptr, view.shape) == (0, (2, 0, 8, 16))


@pytest.mark.parametrize("readonly", [False, True])
def test_read_only_flag_arrives(readonly):
    assert dlpack.view(Producer(readonly=readonly)).readonly is readonly


@pytest.mark.parametrize("version", [None, (1, 0)], ids=["v0", "v1"])
def test_memory_lives_as_long_as_the_owner(version):
    producer = Producer(version=version)
    view = dlpack.view(producer)
    owner = view.owner
    del view
    gc.collect()
    assert producer.freed == 0
    del owner
    gc.collect()
    assert producer.freed == 1


@pytest.mark.parametrize("name", [b"used_dltensor", b"used_dltensor_versioned", b"something"])
def test_capsule_of_another_name_is_refused(name):
    producer = Producer(name=name)
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "k")
    expected = ArgumentError("k", producer, "an array whose __dlpack__ gives an unused capsule")
    assert str(error.value) == str(expected)


def test_later_major_version_is_refused():
    with pytest.raises(UnsupportedError, match=r"^out comes as DLPack 2\.1, which is not 1\.x$"):
        dlpack.view(Producer(version=(2, 1)), 1, "out")


@pytest.mark.parametrize(
    ("version", "options"),
    [(None, {"stream": 7}), ((1, 0), {"stream": 7, "max_version": (1, 0)})],
    ids=["v0", "v1"],
)
def test_producer_is_told_the_stream(version, options):
    producer = Producer(version=version)
    dlpack.view(producer, 7)
    assert producer.asked == [options]


def test_jax_never_sees_minus_one():
    # Its __dlpack__ hands any integer to cuStreamWaitEvent.
    class Array(Producer):
        __module__ = "jaxlib._jax"

    for stream, told in ((-1, None), (7, 7)):
        producer = Array()
        dlpack.view(producer, stream)
        assert producer.asked == [{"stream": told, "max_version": (1, 0)}]
    producer = Producer()
    dlpack.view(producer, -1)
    assert producer.asked == [{"stream": -1, "max_version": (1, 0)}]


def test_producer_in_host_memory_is_not_asked_about_streams():
    producer = Producer(device=(CPU, 0))
    assert dlpack.view(producer, 7).device == (CPU, 0)
    assert producer.asked == [{"max_version": (1, 0)}]


@pytest.mark.parametrize("x", [3.0, None, [1, 2], "q"])
def test_what_is_no_array_is_refused(x):
    with pytest.raises(ArgumentError, match="q must be an array that DLPack can share"):
        dlpack.view(x, 1, "q")


def test_producers_refusal_is_passed_on():
    class Refuses(Producer):
        def __dlpack__(self, **options):
            raise BufferError("requires grad, use tensor.detach()")

    with pytest.raises(ArgumentError, match=r"v must be .*use tensor\.detach\(\).* of shape \(2,"):
        dlpack.view(Refuses(), 1, "v")


def test_numpy_array_is_read_in_place():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2].transpose(2, 0, 1)
    view = dlpack.view(x)
    assert view[:-1] == (x.ctypes.data, (4, 2, 2), (1, 12, 8), "float32", (CPU, 0), False)


@pytest.mark.skipif(np.__version__.startswith("2.0."), reason="NumPy 2.0 does not export such")
def test_numpy_array_that_is_read_only():
    locked = np.zeros((2, 3), np.float32)
    locked.flags.writeable = False
    assert dlpack.view(locked).readonly


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float16", "float16"), ("bfloat16", "uint16"), ("float8_e4m3fn", "uint8"), ("int8", "int8")],
)
def test_cupy_array_over_a_view_is_the_same_memory(dtype, stored):
    pytest.importorskip("cupy")
    owner = Owner()
    view = View(0x7000_0000, (2, 3, 4), (1, 8, 2), dtype, (CUDA, 0), False, owner)
    array = view_of.as_cupy(view)
    size = array.itemsize
    assert array.dtype == stored
    assert (array.data.ptr, array.shape) == (0x7000_0000, (2, 3, 4))
    assert array.strides == (size, 8 * size, 2 * size)
    assert array.data.mem.size == (1 + 16 + 6 + 1) * size
    alive = weakref.ref(owner)
    del view, owner
    assert alive() is not None
    del array
    gc.collect()
    assert alive() is None


class Owner:
    pass


def test_cupy_array_over_an_empty_view():
    pytest.importorskip("cupy")
    view = View(0, (2, 0, 4), (0, 4, 1), "float32", (CUDA, 0), False, None)
    assert view_of.as_cupy(view).shape == (2, 0, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "bool"])
def test_view_of_a_cupy_array_needs_no_capsule(dtype):
    pytest.importorskip("cupy")
    made = View(0x7000_0000, (2, 3, 4), (1, 8, 2), dtype, (CUDA, 0), False, Owner())
    array = view_of.as_cupy(made)
    view = view_of.view_cupy(array)
    assert view[:-1] == made[:-1]
    assert view.owner is array


def test_view_of_a_cupy_array_knows_bfloat16():
    pytest.importorskip("cupy")
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    made = View(0x7000_0000, (2, 3), (3, 1), "bfloat16", (CUDA, 0), False, Owner())
    assert view_of.view_cupy(view_of.as_cupy(made).view(bfloat16))[:-1] == made[:-1]


@pytest.mark.parametrize("version", [None, (1, 0)], ids=["v0", "v1"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ndim": -1}, "of at most 64 axes"),
        ({"ndim": 65}, "of at most 64 axes"),
        ({"ndim": 2**31 - 1}, "of at most 64 axes"),
        ({"shape": None}, r"axes \(DLPack: 4 axes, without a shape\), got"),
        ({"shape": None, "ndim": 2**31 - 1}, "axes, without a shape"),
        ({"data": None}, "its address is 0"),
        ({"data": None, "byte_offset": 64}, "its address is 0"),
        ({"byte_offset": 2**64 - 8}, "inside the address space"),
    ],
)
def test_capsules_that_describe_no_memory_are_not_followed(fields, words, version):
    producer = Producer(version=version)
    tensor = producer._managed.tensor
    for name, value in fields.items():
        setattr(tensor, name, value)
    with pytest.raises(ArgumentError, match=f"^q must be .*{words}") as error:
        dlpack.view(producer, 1, "q")
    assert str(error.value).endswith(str(ArgumentError("", producer, "")).partition("got")[2])


@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((2, -3), (3, 1), "lengths that are at least 0"),
        ((-1,), None, "lengths that are at least 0"),
        ((2, 3), (2**62, 1), "inside the address space"),
        ((2, 3), (-(2**62), 1), "inside the address space"),
        ((0x4000_0000, 3), (-3, 1), "inside the address space"),
        ((2**62, 2**62), None, "inside the address space"),
    ],
)
def test_arrays_beyond_the_address_space_are_refused(shape, strides, words):
    with pytest.raises(ArgumentError, match=f"^q must be .*{words}"):
        dlpack.view(Producer(shape, strides), 1, "q")


@pytest.mark.parametrize(
    ("ptr", "shape", "strides", "words"),
    [
        # A float16 that begins at the first address, and one that ends with the last.
        (2, (1,), (1,), None),
        (2, (2,), (-1,), "got"),
        (4, (2,), (-1,), None),
        (2**63 - 2, (1,), (1,), None),
        (2**63 - 2, (2,), (1,), "got"),
        (2**63 - 4, (2,), (1,), None),
        (2**63, (1,), (1,), "got"),
    ],
)
def test_the_address_space_has_two_ends(ptr, shape, strides, words):
    producer = Producer(shape, strides, data=ptr)
    if words is None:
        assert dlpack.view(producer).ptr == ptr
        return
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "q")
    expected = f"inside the address space (DLPack: {shape}, {strides})"
    assert str(error.value) == str(ArgumentError("q", producer, expected))


@pytest.mark.parametrize(
    ("ptr", "shape", "strides", "fits"),
    [
        (1, (1,), (1,), True),
        (1, (2,), (-1,), False),
        (2**63 - 1, (1,), (1,), True),
        (2**63 - 1, (2,), (1,), False),
    ],
)
def test_elements_of_a_byte_reach_both_ends(ptr, shape, strides, fits):
    producer = Producer(shape, strides, (0, 8), data=ptr)
    if fits:
        assert dlpack.view(producer).ptr == ptr
    else:
        with pytest.raises(ArgumentError, match="inside the address space"):
            dlpack.view(producer)


def test_as_many_axes_as_any_library_has():
    shape = (1,) * 64
    assert dlpack.view(Producer(shape, None)).shape == shape
    producer = Producer((1,) * 65, None)
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "q")
    expected = ArgumentError("q", producer, "of at most 64 axes (DLPack: 65 axes)")
    assert str(error.value) == str(expected)


def test_negative_lengths_are_shown():
    producer = Producer((2, -3), (3, 1))
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "q")
    words = "of lengths that are at least 0 (DLPack: (2, -3))"
    assert str(error.value) == str(ArgumentError("q", producer, words))


def test_strides_that_are_never_taken_may_be_of_any_size():
    shape, strides = (1, 3, 1), (2**63 - 1, 1, -(2**63))
    view = dlpack.view(Producer(shape, strides))
    assert (view.shape, view.strides) == (shape, strides)
    pytest.importorskip("cupy")
    made = view_of.as_cupy(view._replace(device=(CUDA, 0), owner=Owner()))
    assert (made.shape, made.strides) == (shape, (0, 2, 0))


@pytest.mark.parametrize(
    ("kind", "device"), [(13, (CUDA, 3)), (3, (CPU, 0))], ids=["managed", "pinned"]
)
def test_managed_memory_is_the_gpus_and_pinned_memory_the_hosts(kind, device):
    assert dlpack.view(Producer(device=(kind, 3))).device == device


def test_a_capsule_is_where_its_array_says():
    producer = Producer()
    producer.device = (CUDA, 2)
    with pytest.raises(ArgumentError) as error:
        dlpack.view(producer, 1, "q")
    words = "an array whose capsule is where its __dlpack_device__ says, (2, 2), not (2, 3)"
    assert str(error.value) == str(ArgumentError("q", producer, words))


@pytest.mark.parametrize("given", [None, 3, "capsule", object()])
def test_what_is_no_capsule_is_refused(given):
    class Wrong(Producer):
        def __dlpack__(self, **options):
            return given

    with pytest.raises(ArgumentError, match=r"^q must be an array that DLPack can share"):
        dlpack.view(Wrong(), 1, "q")


@pytest.mark.parametrize("given", [None, (2,), (None, None), 2])
def test_what_is_no_device_is_refused(given):
    producer = Producer()
    producer.device = given
    with pytest.raises(ArgumentError, match=r"^q must be an array that DLPack can share"):
        dlpack.view(producer, 1, "q")


def test_arrays_of_jax_are_read_only():
    class Array(Producer):
        __module__ = "jaxlib._jax"

    assert dlpack.view(Array()).readonly
    assert not dlpack.view(Producer()).readonly
