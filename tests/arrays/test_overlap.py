"""Whether arrays share memory, and which outputs may be written to."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cuattn.arrays import overlap as module
from cuattn.arrays.overlap import check_output, extent, overlap
from cuattn.arrays.view import CUDA, View
from cuattn.errors import ArgumentError

ADDRESS = 0x7000_0000


def view(shape, strides, ptr=ADDRESS, readonly=False):
    return View(ptr, shape, strides, "float16", (CUDA, 0), readonly, None)


@pytest.mark.parametrize(
    ("shape", "strides", "bytes_"),
    [
        ((4, 3), (3, 1), (0, 24)),
        ((4, 3), (-3, 1), (-18, 6)),
        ((4, 3), (0, 2), (0, 10)),
        ((4, 0), (3, 1), (0, 0)),
        ((), (), (0, 2)),
        ((1, 3), (2**61, 1), (0, 6)),
    ],
)
def test_extent_counts_bytes_from_element_0(shape, strides, bytes_):
    assert extent(shape, strides, 2) == bytes_


def test_extent_of_elements_of_a_byte():
    assert extent((2,), (1,), 1) == (0, 2)
    assert extent((2,), (-1,), 1) == (-1, 1)


def test_interleaved_arrays_do_not_overlap():
    even, odd = (view((8, 4), (8, 2), ADDRESS + offset) for offset in (0, 2))
    assert not overlap(even, odd, 2)
    assert overlap(even, even, 2)


def test_a_stride_that_is_never_taken_may_be_of_any_size():
    one = view((1, 4), (2**62, 1))
    assert overlap(one, one, 2)
    assert not overlap(one, view((1, 4), (-(2**62), 1), ADDRESS + 8), 2)


def hard():
    """Two arrays that interleave in a way that takes an integer program of some size to see."""
    primes = (2 * 3 * 5 * 7 * 11, 13 * 17 * 19, 23 * 29 * 31, 37 * 41 * 43, 47 * 53)
    x = view((50,) * 5, primes)
    return x, view((50,) * 5, primes, ADDRESS + 2)


def test_a_question_that_is_too_hard_is_answered_with_yes(monkeypatch):
    monkeypatch.setattr(module, "_MAX_WORK", 1)
    a, b = hard()
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(module._stand_in(a, 2), module._stand_in(b, 2), 1)
    assert overlap(a, b, 2)
    out = view((50,) * 5, a.strides)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of q"):
        check(out, b)


def test_arrays_that_are_apart_count_as_one_only_where_it_is_too_hard(monkeypatch):
    a, b = (view((2, 2, 2), (3, 13, 10), ADDRESS + offset) for offset in (0, 18))
    assert not overlap(a, b, 2)
    monkeypatch.setattr(module, "_MAX_WORK", 1)
    assert overlap(a, b, 2)


def check(target, x, out="out"):
    extents = {"q": extent(x.shape, x.strides, 2), "out": extent(target.shape, target.strides, 2)}
    check_output(out, target, {"q": x}, extents, 2)


def test_outputs_lie_apart_from_inputs():
    x = view((8, 4), (4, 1))
    check(view((8, 4), (4, 1), ADDRESS + 64), x)
    check(view((8, 4), (4, 1), ADDRESS - 64), x)
    check(view((8, 4), (-4, 1), ADDRESS + 64 + 56), x)
    for target in (x, view((8, 4), (4, 1), ADDRESS + 62), view((8, 4), (4, 1), ADDRESS - 62)):
        with pytest.raises(ArgumentError) as error:
            check(target, x)
        assert str(error.value) == "out must be in memory apart from that of q, got 'out'"


def test_outputs_that_begin_elsewhere_lie_before_their_element_0():
    """Rows go backwards: of 8 rows of 8 bytes the last one begins 56 bytes before the first."""
    forwards = view((8, 4), (4, 1))
    for offset, apart in ((64 + 56, True), (64 + 54, False), (-8, True), (-6, False)):
        backwards = view((8, 4), (-4, 1), ADDRESS + offset)
        for target, x in ((backwards, forwards), (forwards, backwards)):
            if apart:
                check(target, x)
                continue
            with pytest.raises(ArgumentError, match=r"^out must be in memory apart"):
                check(target, x)


def test_what_lies_apart_is_not_asked_for(monkeypatch):
    """Most calls are answered by four additions; NumPy's answer takes microseconds."""
    monkeypatch.setattr(module, "overlap", None)
    x = view((8, 4), (4, 1))
    for offset in (64, -64):
        check(view((8, 4), (4, 1), ADDRESS + offset), x)


def test_outputs_are_writable():
    words = (
        "out must be writable: not read-only, not of JAX, and no tensor that requires gradients, "
        "got 'out'"
    )
    with pytest.raises(ArgumentError, match=rf"^{words}$"):
        check(view((8, 4), (4, 1), ADDRESS + 64, readonly=True), view((8, 4), (4, 1)))


def test_autograd_is_told_of_a_write(monkeypatch):
    class Tensor:
        is_inference = staticmethod(lambda: False)

    class Inference(Tensor):
        is_inference = staticmethod(lambda: True)

    torch, told = ModuleType("torch"), []
    torch.Tensor = Tensor
    torch.autograd = SimpleNamespace(graph=SimpleNamespace(increment_version=told.append))
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensor = Tensor()
    for out in (tensor, Inference(), "of another library"):
        check(view((8, 4), (4, 1), ADDRESS + 64), view((8, 4), (4, 1)), out)
    assert told == [tensor]
    # One that is refused is not written.
    with pytest.raises(ArgumentError):
        check(view((8, 4), (4, 1)), view((8, 4), (4, 1)), tensor)
    assert told == [tensor]
