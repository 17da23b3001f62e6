"""Calls that have been made before, on other arrays of the same kinds: most calls are such.

Nothing is planned in them, and no array is looked at closely. What was found for the first one is
kept under all that it depends on; it needs the addresses of this one, an output and a stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

from .kinds import addresses_of
from .repeated_call import Planned, RepeatedCall

__all__ = ["Made", "Repetitions", "repeating", "result_of"]

P = ParamSpec("P")

# Kinds of calls that are kept; they are forgotten together.
_REMEMBERED = 1024


class Made(NamedTuple):
    """What a function returns that has done nothing but launch: it can do so again.

    Attributes
    ----------
    result : object
        What the caller gets.
    plan : Planned
    constants : mapping of str to int
        Addresses that are the same in all calls of the kind, by their names in the chain.
    """

    result: Any
    plan: Planned
    constants: Mapping[str, int]


def result_of(made: Any) -> Any:
    """Return what the caller gets of what may be a `Made`."""
    return made.result if type(made) is Made else made


class Repetitions:
    """Calls of a function that are remembered."""

    def __init__(self) -> None:
        self._calls: dict[tuple[Any, ...], RepeatedCall] = {}
        self._last: RepeatedCall | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._calls)

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._last = None

    def call(
        self,
        function: Callable[..., Any],
        names: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        bound: tuple[Any, ...] = (),
        state: object = None,
    ) -> Any:
        """Call a function, or do what it did before.

        Parameters
        ----------
        function : callable
            It returns what its caller gets, or a `Made`.
        names : sequence of str
            Its parameters behind those of `bound`. Among them are `q`, the array that decides whose
            stream and whose outputs these are, and `out`.
        args, kwargs : tuple, dict
            Its arguments.
        bound : tuple of object
            Those before them, on which nothing depends.
        state : object
            What else it depends on.
        """
        values = (*args, *kwargs.values())
        form = (state, len(args), *kwargs)
        last = self._last
        if last is not None and last.form == form and last.kind is not None:
            addresses = last.kind.addresses_of(values)
            if addresses is not None:
                result = last(values, addresses)
                if result is not None:
                    return result
        key: list[Any] = [form]
        addresses = addresses_of(values, key)
        if addresses is None:
            return result_of(function(*bound, *args, **kwargs))
        known = tuple(key)
        try:
            call = self._calls.get(known)
        except TypeError:  # what cannot be a key is named by the checks
            return result_of(function(*bound, *args, **kwargs))
        if call is not None:
            if call is last:
                call.learn(values)
            self._last = call
            result = call(values, addresses)
            return result_of(function(*bound, *args, **kwargs)) if result is None else result
        made = function(*bound, *args, **kwargs)
        if type(made) is Made:
            if len(self._calls) >= _REMEMBERED:
                self.clear()
            named = dict(zip((*names[: len(args)], *kwargs), values, strict=True))
            self._calls[known] = RepeatedCall(form, made.plan, made.constants, named)
        return result_of(made)


def repeating(calls: Repetitions) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Return a decorator of a function whose calls are remembered; see `Repetitions.call`."""

    def remembering(function: Callable[P, Any]) -> Callable[P, Any]:
        names = [*inspect.signature(function).parameters]

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> Any:
            return calls.call(function, names, args, kwargs)

        return called

    return remembering
