"""Calls that are remembered by their arguments."""

import numpy as np
import pytest

from cuattn.common.remember import remember
from cuattn.plan.prepared import prepare
from cuattn.quantize import _prepare


def counted(most=8):
    calls = []

    @remember(most)
    def function(*args, **kwargs):
        calls.append(args)
        return (*args, *kwargs.items())

    return function, calls


def test_equal_arguments_are_asked_once():
    function, calls = counted()
    assert function(1, "a") is function(1, "a")
    assert function(1, x=2) is function(1, x=2)
    assert calls == [(1, "a"), (1,)]


@pytest.mark.parametrize("values", [(1, True, 1.0), (0, False, 0.0, np.float32(0))])
def test_equal_arguments_of_different_types_are_different(values):
    function, calls = counted()
    for value in values * 2:
        (given,) = function(value)
        assert type(given) is type(value)
    assert len(calls) == len(values)


def test_the_last_ones_are_remembered():
    function, calls = counted(2)
    for value in (1, 2, 1, 3, 1, 2):
        function(value)
    assert [args[0] for args in calls] == [1, 2, 3, 2]


def test_a_process_remembers_a_bounded_number_of_kinds():
    # At a few kilobytes each: a server that sees all lengths must not grow.
    assert prepare.cache_info().maxsize == 1024
    assert _prepare.cache_info().maxsize == 256


@pytest.mark.parametrize("keywords", [False, True])
def test_what_cannot_be_a_key_goes_to_the_function(keywords):
    function, calls = counted()
    for _ in range(2):
        given = function(1, x=[]) if keywords else function(1, [])
        assert given == ((1, ("x", [])) if keywords else (1, []))
    assert len(calls) == 2


def test_what_is_remembered_can_be_forgotten():
    function, calls = counted()
    function(1)
    function(1)
    assert (function.cache_info().hits, function.cache_info().misses) == (1, 1)
    function.cache_clear()
    function(1)
    assert calls == [(1,), (1,)]


def test_an_error_of_the_function_is_its_own():
    calls = []

    @remember(2)
    def function(x):
        calls.append(x)
        raise TypeError("its own")

    with pytest.raises(TypeError, match="its own"):
        function(1)
    assert calls == [1]
