"""Types of options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TypeVar

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme

__all__ = ["at_least", "between", "items", "one_of", "schemes"]

T = TypeVar("T")


def schemes(text: str) -> list[Scheme] | None:
    """Read the names of presets; "all" is None: as many as there are kernels for."""
    return None if text == "all" else items(resolve)(text)


def items(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a reader of comma-separated values without repetitions."""

    def read(text: str) -> list[T]:
        try:
            return list(dict.fromkeys(one(word.strip()) for word in text.split(",")))
        except ArgumentError as error:
            # argparse would drop the message of any other ValueError.
            raise argparse.ArgumentTypeError(str(error)) from None

    read.__name__ = "list"  # in argparse's "invalid list value"
    return read


def at_least(least: int) -> Callable[[str], int]:
    """Return a reader of integers that are not smaller."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    read.__name__ = "integer"
    return read


def between(least: float, most: float) -> Callable[[str], float]:
    """Return a reader of numbers in a range."""

    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}, got {text}")
        return value

    read.__name__ = "number"
    return read


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """Return a reader of one of some words."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {[*choices]}, got {text!r}")
        return text

    return read
