"""Capsules of DLPack with anything in them: looked at as far as they are safe, else refused."""

import ctypes

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import cuattn
from cuattn.arrays import dlpack

HUGE = st.sampled_from([2**31, 2**40, 2**62, -(2**63), 2**63 - 1])
SIZES = st.integers(-2, 6) | HUGE


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Producer:
    """Exports a small array of the host as whatever the example says it is."""

    def __init__(self, members, shape, strides):
        self.memory = np.zeros(4096, np.uint8)
        self.shape = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        self.strides = (
            None if strides is None else (ctypes.c_int64 * max(len(strides), 1))(*strides)
        )
        tensor = Tensor(
            data=self.memory.ctypes.data,
            shape=ctypes.addressof(self.shape),
            strides=None if self.strides is None else ctypes.addressof(self.strides),
        )
        for name, value in members.items():
            setattr(tensor, name, value)
        self.managed = Managed(tensor, None, None)

    def __dlpack_device__(self):
        return self.managed.tensor.device_type, self.managed.tensor.device_id

    def __dlpack__(self, **options):
        del options
        return _new(ctypes.addressof(self.managed), b"dltensor", None)


@st.composite
def producers(draw):
    shape = draw(st.lists(SIZES, max_size=6))
    has_strides = draw(st.booleans())
    strides = (
        draw(st.lists(SIZES, min_size=len(shape), max_size=len(shape))) if has_strides else None
    )
    members = {
        "ndim": draw(st.just(len(shape)) | st.sampled_from([-1, 0, 2**20, 2**31 - 1])),
        "device_type": draw(st.sampled_from([1, 2, 3, 13, 0, 99])),
        "code": draw(st.sampled_from([2, 2, 2, 4, 0, 1, 5, 200])),
        "bits": draw(st.sampled_from([16, 16, 32, 8, 0, 255])),
        "lanes": draw(st.sampled_from([1, 1, 1, 0, 4])),
    }
    if draw(st.integers(0, 5)) == 0:
        members["shape"] = None
    if draw(st.integers(0, 5)) == 0:
        members["data"] = None
    return members, shape, strides


def run(place, count, configured, config, seed):
    del place, config, seed

    @given(parts=producers())
    def look(parts):
        producer = Producer(*parts)
        try:
            seen = dlpack.view(producer, None, "q")
        except cuattn.CuattnError:
            count("refused")
            return
        count("looked at")
        assert len(seen.shape) == len(seen.strides)
        # Nobody may read what the example only pretends to have: the device is not asked for it.
        if producer.__dlpack_device__()[0] == 1:
            return
        try:
            cuattn.attention(producer, producer, producer)
        except cuattn.CuattnError:
            count("attention refused")

    configured(look)()
