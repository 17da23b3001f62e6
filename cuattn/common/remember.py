"""Plans that are made once for each kind of call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, ParamSpec, TypeVar

__all__ = ["Remembered", "remember"]

P = ParamSpec("P")
T = TypeVar("T")


class Remembered(Generic[P, T]):
    """A function that is asked once for each of the last `most` keys, which are its arguments.

    Keys of different types are different: 1 must not pass for True because they are equal.
    Arguments that cannot be a key go to the function itself, which says what is wrong with them.
    """

    def __init__(self, function: Callable[P, T], most: int) -> None:
        self.__wrapped__ = function
        self._remembered = lru_cache(most, typed=True)(function)
        self.cache_clear = self._remembered.cache_clear
        self.cache_info = self._remembered.cache_info

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""
        try:
            return self._remembered(*args, **kwargs)  # type: ignore[arg-type]
        except TypeError:
            try:
                hash((args, *kwargs.values()))
            except TypeError:
                return self.__wrapped__(*args, **kwargs)
            raise


def remember(most: int) -> Callable[[Callable[P, T]], Remembered[P, T]]:
    """Return a decorator that makes a function a `Remembered` one."""
    return lambda function: Remembered(function, most)
