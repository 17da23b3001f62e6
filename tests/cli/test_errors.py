"""The exceptions: what they are caught as, what they say, and that they survive pickling."""

import pickle

import pytest

from cuattn.errors import (
    ArgumentError,
    CompileError,
    CuattnError,
    NoGPUError,
    UnsupportedError,
)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ArgumentError("layout", "HDN", "'HND' or 'NHD'"), ValueError),
        (UnsupportedError("sm_70 is too old"), RuntimeError),
        (NoGPUError("no driver"), RuntimeError),
        (CompileError("unit.cu does not compile", "line 3: error"), RuntimeError),
    ],
)
def test_error_is_caught_by_base_class_and_by_builtin(error, builtin):
    assert isinstance(error, CuattnError)
    assert isinstance(error, builtin)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_argument_error_names_argument_value_and_expectation():
    error = ArgumentError("layout", "HDN", "'HND' or 'NHD'")
    assert str(error) == "layout must be 'HND' or 'NHD', got 'HDN'"
    assert (error.argument, error.value, error.expected) == ("layout", "HDN", "'HND' or 'NHD'")


def test_argument_error_shortens_a_long_value_to_one_line():
    message = str(ArgumentError("scheme", ["several\nlines"] * 100, "one scheme"))
    assert "\n" not in message
    assert len(message) < 200


def test_argument_error_never_prints_the_elements_of_an_array():
    class Array:
        shape = (2, 3)
        dtype = "float16"

        def __dlpack__(self):
            raise NotImplementedError

        def __repr__(self):
            raise RuntimeError("would copy from the GPU")

    message = str(ArgumentError("q", Array(), "of 4 dimensions"))
    assert message == "q must be of 4 dimensions, got Array of shape (2, 3) and dtype float16"


def test_argument_error_says_what_it_can_of_a_value_that_cannot_be_shown():
    class Odd:
        def __repr__(self):
            raise ValueError("half made")

    class Array(Odd):
        shape = dtype = None

        def __dlpack__(self):
            raise NotImplementedError

    assert str(ArgumentError("scheme", Odd(), "one")) == "scheme must be one, got Odd"
    message = str(ArgumentError("q", Array(), "an array"))
    assert message == "q must be an array, got Array of shape ? and dtype None"


def test_compile_error_shows_and_keeps_the_log():
    error = CompileError("unit.cu does not compile", "line 3: error")
    assert str(error) == "unit.cu does not compile\nline 3: error"
    assert error.log == "line 3: error"
    assert str(CompileError("no compiler")) == "no compiler"
