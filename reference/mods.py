"""Functions that a caller has for a kernel's expressions: which arguments they want."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .arrays import FloatArray

__all__ = [
    "PLACE",
    "MaskFunction",
    "ScoreFunction",
    "bound",
    "check_reference",
    "hidden",
    "modified",
    "of_sequence",
]

# Where a logit is: indices of its sequence, query head, row and key, and of the key that the row
# stands beside.
PLACE = ("batch", "head", "q", "kv", "own")

# Functions of any of `PLACE`, and of "score", by keywords.
ScoreFunction = Callable[..., Any]
MaskFunction = Callable[..., Any]


def check_reference(argument: str, function: Any, known: tuple[str, ...]) -> None:
    """Check that a function wants no arguments but those that it can be given.

    Raises
    ------
    ArgumentError
        Naming the function's argument that is none of them.
    """
    if not callable(function):
        raise ArgumentError(argument, function, f"a function of any of {[*known]}")
    for name, parameter in _parameters(function).items():
        optional = parameter.default is not parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY or (name not in known and not optional):
            raise ArgumentError(argument, name, f"a function of any of {[*known]}")


def modified(function: ScoreFunction, s: FloatArray, place: Mapping[str, Any]) -> FloatArray:
    """Return what a function makes of logits [row, key], as many.

    Raises
    ------
    ArgumentError
        If it returns no numbers, or another shape.
    """
    found = _called(function, {"score": s, **place})
    return np.array(_spread("score_mod", found, s.shape), np.float64)


def hidden(
    function: MaskFunction, place: Mapping[str, Any], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return which keys [row, key] a function says are not seen.

    Raises
    ------
    ArgumentError
        If it returns no numbers, or another shape.
    """
    seen: NDArray[np.bool_] = _spread("mask_mod", _called(function, place), shape).astype(np.bool_)
    return ~seen


def bound(
    function: Callable[..., Any], given: tuple[str, ...], named: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return a function of what is given, of one that also wants arrays and numbers by names."""

    def called(**place: Any) -> Any:
        return _called(function, {**{name: place[name] for name in given}, **named})

    return called


def of_sequence(function: Callable[..., Any] | None, number: int) -> Callable[..., Any] | None:
    """Return a function for a call of one sequence of several; None if there is none."""
    if function is None:
        return None
    of_all = function

    def called(**given: Any) -> Any:
        return _called(of_all, {**given, "batch": number})

    return called


def _called(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    wanted = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values()):
        return function(**given)
    return function(**{name: x for name, x in given.items() if name in wanted})


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # of a built-in one nobody knows
        raise ArgumentError("reference", function, "a function of Python") from None


def _spread(name: str, found: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    values = np.asarray(found)
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":  # None has no type
        raise ArgumentError(name, found, "a function that returns numbers or booleans")
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        expected = f"a function whose results broadcast to {shape}, [row, key]"
        raise ArgumentError(name, values, expected) from None
