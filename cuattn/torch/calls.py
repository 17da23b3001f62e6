"""Counts of calls: how many cuattn answered, with which scheme, and why others were not for it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from itertools import count
from weakref import WeakValueDictionary

import torch

__all__ = ["Calls", "calls", "count_fallback", "count_own", "counting"]

_LOG = logging.getLogger("cuattn.torch")

_numbers = count()
_lock = threading.Lock()


class Calls:
    """How many calls of attention cuattn answered, and how many another function did, by reason.

    ``print(calls)`` shows both. A reason that is new is also logged, by the logger "cuattn.torch"
    at the level INFO. In a function that `torch.compile` compiles a call that goes elsewhere is
    counted where it is traced, once; those of cuattn are counted whenever they run, but for replays
    of CUDA graphs, which run no Python.

    Attributes
    ----------
    number : int
        By which operators know it.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._schemes: Counter[str] = Counter()
        self._fallback: Counter[str] = Counter()
        _by_number[self.number] = self

    @property
    def cuattn(self) -> int:
        """Calls that cuattn answered."""
        return sum(self._schemes.values())

    @property
    def schemes(self) -> dict[str, int]:
        """The same by the name of the scheme."""
        return dict(self._schemes)

    @property
    def fallback(self) -> dict[str, int]:
        """Calls that went to the function of before, for each reason."""
        return dict(self._fallback)

    def reset(self) -> None:
        """Begin again at zero."""
        with _lock:
            self._schemes.clear()
            self._fallback.clear()

    def __str__(self) -> str:
        parts = [f"{n} by cuattn ({name})" for name, n in self._schemes.items()]
        parts += [f"{n} not ({reason})" for reason, n in self._fallback.items()]
        return "calls: " + (", ".join(parts) or "none")


_by_number: WeakValueDictionary[int, Calls] = WeakValueDictionary()

# Of the whole process.
calls = Calls()


class _Counting(threading.local):
    """By which counter, besides `calls`, operators are counted that this thread calls."""

    number: int = calls.number


counting = _Counting()


def count_own(number: int, scheme: str) -> None:
    """Count a call that cuattn answers: in all, and by the counter of that number, if it lives."""
    with _lock:
        for counter in _both(number):
            counter._schemes[scheme] += 1


def count_fallback(number: int, reason: str) -> None:
    """Count a call that cuattn does not answer; `torch.compile` does so while it traces."""
    if torch.compiler.is_compiling():
        _count_when_traced(number, reason)
    else:
        _count_fallback(number, reason)


def _count_fallback(number: int, reason: str) -> None:
    with _lock:
        if not calls._fallback[reason]:
            _LOG.info("attention that cuattn does not answer: %s", reason)
        for counter in _both(number):
            counter._fallback[reason] += 1


def _both(number: int) -> list[Calls]:
    own = _by_number.get(number) if number != calls.number else None
    return [calls] if own is None else [calls, own]


def _count_and_return(number: int, reason: str) -> int:
    _count_fallback(number, reason)
    return number


# Dynamo calls it itself and takes its result for a constant.
_count_when_traced = torch.compiler.assume_constant_result(_count_and_return)
