"""The text of a caller's expression, and the names in it: what can be said without a compiler."""

from __future__ import annotations

import keyword
import re
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..specs.mods import without_comments
from .mods import Number

__all__ = ["check_name", "check_text", "checked_number"]

_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class compl concept const consteval constexpr constinit const_cast continue co_await
    co_return co_yield decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires return
    short signed sizeof static static_assert static_cast struct switch template this thread_local
    throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while
    xor xor_eq INFINITY NULL
"""
_KEYWORDS = frozenset(_WORDS.split())
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_INT32 = 2**31


def check_text(argument: str, text: Any) -> None:
    """Check that a text can stand in a function without changing what is around it.

    Raises
    ------
    ArgumentError
        Naming ``argument.text``.
    """
    name = f"{argument}.text"
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ArgumentError(name, text, "an expression of CUDA C++, as text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError(name, text, "text that UTF-8 can hold") from None
    bare = without_comments(text)
    if "#" in bare or "%:" in bare:
        raise ArgumentError(name, text, "without lines for the preprocessor (#)")
    if "/*" in bare or text.rstrip().endswith("\\"):
        raise ArgumentError(name, text, "without a comment or a line that does not end")
    unclosed: list[str] = []
    for at in re.findall(r"[][(){}]", bare):
        if at not in _BRACKETS:
            unclosed.append(at)
        elif not unclosed or unclosed.pop() != _BRACKETS[at]:
            raise ArgumentError(name, text, f"with brackets that match: {at!r} closes none")
    if unclosed:
        raise ArgumentError(name, text, f"with brackets that match: {unclosed[-1]!r} is not closed")


def check_name(argument: str, name: Any, given: tuple[str, ...]) -> None:
    """Check that an array or a number has a name that C++ and Python take, and that is free.

    Raises
    ------
    ArgumentError
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise ArgumentError(argument, name, "named by identifiers of Python in ASCII")
    if name in _KEYWORDS:
        raise ArgumentError(argument, name, "named by identifiers that are no words of C++")
    if name.startswith("_"):
        raise ArgumentError(argument, name, "named by identifiers that begin with a letter")
    if name in given or name == "score":
        raise ArgumentError(argument, name, f"named otherwise than what is given: {[*given]}")


def checked_number(argument: str, name: str, x: Any) -> Number:
    """Return a number as a key of plans; a float is rounded to float32.

    Raises
    ------
    ArgumentError
        If it is none, or no int of 32 bits.
    """
    named = f"{argument}.numbers[{name!r}]"
    if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
        if not -_INT32 <= x < _INT32:
            raise ArgumentError(named, x, "an int of 32 bits, or a float")
        return Number(name, "int", str(int(x)))
    if not isinstance(x, (float, np.floating)):
        raise ArgumentError(named, x, "an int or a float")
    with np.errstate(over="ignore"):
        return Number(name, "float", float(np.float32(x)).hex())
