"""Which expressions of a caller only add to a score what is linear in the key, and how steep."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from ..specs.mods import ModSource, without_comments
from .linear_terms import (
    OF_HEADS,
    TYPES,
    NotLinearError,
    Term,
    added,
    cast,
    multiplied,
    negative,
)

__all__ = ["slope_source"]

# Expressions of a process that have been looked at.
_REMEMBERED = 1024

# Longer texts are not looked at; each token may nest once.
_MOST_TOKENS = 200

_NUMBER = r"(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[fFlL]*"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[A-Za-z_]\w*|\+\+|--|[-+*/%()\[\],<>;])")

_ABSOLUTE = ("abs", "fabs", "fabsf")
# Functions of CUDA that return a float, and those that return what they are given.
_REAL_WORDS = """
    ceilf exp exp2 exp2f expf fabs fabsf floorf fmaxf fminf log log2 log2f logf pow powf rsqrtf sqrt
    sqrtf
"""
_REAL = frozenset(_REAL_WORDS.split())
_ALIKE = frozenset(("abs", "max", "min"))


@lru_cache(_REMEMBERED)
def slope_source(mod: ModSource, *, only_past: bool) -> ModSource | None:
    """Return how much more a `score_mod` adds for a key than for the one before it.

    That is for an expression of the form score + slope * kv + rest, whose slope is of the batch and
    the head, and whose rest is of these and the row. It is read as arithmetic, with casts, numbers,
    arrays of ``[batch, head]`` and a few functions; integers are not divided where keys would
    differ.

    Parameters
    ----------
    mod : ModSource
        It is known to compile.
    only_past : bool
        Whether all visible keys are beside or before the row's own, so that ``abs(own - kv)`` is
        ``own - kv``.

    Returns
    -------
    ModSource or None
        None if the expression has another form, or one that is not understood.
    """
    try:
        term = _Reader(mod, only_past).read()
    except NotLinearError:
        return None
    if term.score != 1 or not term.slope:
        return None
    return replace(mod, name="score_slope", text=term.slope)


class _Reader:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, mod: ModSource, only_past: bool) -> None:
        self.arrays, self.numbers = dict(mod.arrays), dict(mod.numbers)
        self.only_past = only_past
        self.tokens = _tokens(mod.text)
        self.at = 0

    def read(self) -> Term:
        """Return the whole, which may be a single ``return``."""
        is_body = self.takes("return")
        term = self.sum()
        if is_body:
            self.expect(";")
        if self.at != len(self.tokens):
            raise NotLinearError
        return term

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def takes(self, *tokens: str) -> str:
        """Go past one of some tokens, and return which; else "" and stay."""
        token = self.peek()
        if token not in tokens:
            return ""
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if not self.takes(token):
            raise NotLinearError

    def sum(self) -> Term:
        term = self.product()
        while sign := self.takes("+", "-"):
            term = added(term, self.product(), sign)
        return term

    def product(self) -> Term:
        term = self.signed()
        while operator := self.takes("*", "/", "%"):
            term = multiplied(term, self.signed(), operator)
        return term

    def signed(self) -> Term:
        if self.takes("+"):
            return self.signed()
        if self.takes("-"):
            return negative(self.signed())
        if self.peek() == "(" and self.tokens[self.at + 1 : self.at + 3][1:] == [")"]:
            kind = self.tokens[self.at + 1]
            if kind in TYPES:
                self.at += 3
                return cast(kind, self.signed())
        return self.primary()

    def primary(self) -> Term:
        if self.takes("("):
            return self.bracketed()
        token = self.peek()
        self.at += 1
        if re.fullmatch(_NUMBER, token):
            is_real = any(x in token for x in ".eEfF")
            return Term(token, is_real)
        if token in self.arrays:
            return self.element(token)
        if token in self.numbers:
            return Term(token, self.numbers[token] == "float")
        if token == "static_cast":
            self.expect("<")
            token = self.peek()
            self.at += 1
            self.expect(">")
            if token not in TYPES:
                raise NotLinearError
        if token in TYPES:
            self.expect("(")
            return cast(token, self.bracketed())
        if token in _REAL or token in _ALIKE:
            return self.call(token)
        given = {
            "score": Term("score", True, score=1),
            "kv": Term("kv", False, slope="1.0f"),
            **{name: Term(name, False) for name in ("batch", "head", "q", "own")},
        }
        if token not in given:
            raise NotLinearError
        return replace(given[token], of=frozenset((token,)), name=token)

    def bracketed(self) -> Term:
        term = self.sum()
        self.expect(")")
        return term

    def element(self, array: str) -> Term:
        self.expect("[")
        index = self.sum()
        self.expect("]")
        if not index.of <= OF_HEADS or index.is_real:
            raise NotLinearError
        is_real = self.arrays[array] in ("float16", "bfloat16", "float32")
        return Term(f"{array}[{index.text}]", is_real, index.of)

    def call(self, function: str) -> Term:
        self.expect("(")
        given = [self.sum()]
        while self.takes(","):
            given.append(self.sum())
        self.expect(")")
        is_real = function in _REAL or any(x.is_real for x in given)
        text = f"{function}({', '.join(x.text for x in given)})"
        of = frozenset().union(*(x.of for x in given))
        if all(x.is_constant for x in given):
            return Term(text, is_real, of)
        if function in _ABSOLUTE and self.only_past and len(given) == 1 and given[0].past:
            return Term(text, is_real, of, slope="(-1.0f)", past=1)
        raise NotLinearError


def _tokens(text: str) -> list[str]:
    if "'" in text or '"' in text:
        raise NotLinearError
    text = without_comments(text).rstrip()
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(found) == _MOST_TOKENS:
            raise NotLinearError
        found.append(match[1])
        at = match.end()
    return found
