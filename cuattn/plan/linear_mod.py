"""Which expressions of a caller only add to a score what is linear in the key, and how steep."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from ..specs.mods import ModSource, without_comments

__all__ = ["slope_source"]

# Expressions of a process that have been looked at.
_REMEMBERED = 1024

# Longer texts are not looked at; each token may nest once.
_MOST_TOKENS = 200

_NUMBER = r"(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[fFlL]*"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[A-Za-z_]\w*|\+\+|--|[-+*/%()\[\],<>;])")

_TYPES = {"float": True, "double": True, "int": False, "long": False}
_ABSOLUTE = ("abs", "fabs", "fabsf")
# Functions of CUDA that return a float, and those that return what they are given.
_REAL_WORDS = """
    ceilf exp exp2 exp2f expf fabs fabsf floorf fmaxf fminf log log2 log2f logf pow powf rsqrtf sqrt
    sqrtf
"""
_REAL = frozenset(_REAL_WORDS.split())
_ALIKE = frozenset(("abs", "max", "min"))

# A slope is one of a warp's rows, and arrays are read though no key may be visible.
_OF_HEADS = frozenset(("batch", "head"))


class _NotLinearError(Exception):
    """The text says something else."""


@dataclass(frozen=True)
class _Term:
    """A part of an expression.

    Attributes
    ----------
    text : str
        In C++.
    is_real : bool
        Whether its type is one of floats, not of integers.
    of : frozenset of str
        What is given to the expression and counts here.
    score : int
        How often the score is added: 0, 1 or -1.
    slope : str
        In C++, a float: by how much the next key has more; empty if all keys have the same.
    name : str
        Of what is given, if it is that alone.
    past : int
        1 if it is ``own - kv``, -1 if the opposite, else 0.
    """

    text: str
    is_real: bool
    of: frozenset[str] = frozenset()
    score: int = 0
    slope: str = ""
    name: str = ""
    past: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether keys have nothing to do with it."""
        return self.score == 0 and not self.slope


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
    except _NotLinearError:
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

    def read(self) -> _Term:
        """Return the whole, which may be a single ``return``."""
        is_body = self.takes("return")
        term = self.sum()
        if is_body:
            self.expect(";")
        if self.at != len(self.tokens):
            raise _NotLinearError
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
            raise _NotLinearError

    def sum(self) -> _Term:
        term = self.product()
        while sign := self.takes("+", "-"):
            term = _added(term, self.product(), sign)
        return term

    def product(self) -> _Term:
        term = self.signed()
        while operator := self.takes("*", "/", "%"):
            term = _multiplied(term, self.signed(), operator)
        return term

    def signed(self) -> _Term:
        if self.takes("+"):
            return self.signed()
        if self.takes("-"):
            return _negative(self.signed())
        if self.peek() == "(" and self.tokens[self.at + 1 : self.at + 3][1:] == [")"]:
            kind = self.tokens[self.at + 1]
            if kind in _TYPES:
                self.at += 3
                return _cast(kind, self.signed())
        return self.primary()

    def primary(self) -> _Term:
        if self.takes("("):
            return self.bracketed()
        token = self.peek()
        self.at += 1
        if re.fullmatch(_NUMBER, token):
            is_real = any(x in token for x in ".eEfF")
            return _Term(token, is_real)
        if token in self.arrays:
            return self.element(token)
        if token in self.numbers:
            return _Term(token, self.numbers[token] == "float")
        if token == "static_cast":
            self.expect("<")
            token = self.peek()
            self.at += 1
            self.expect(">")
            if token not in _TYPES:
                raise _NotLinearError
        if token in _TYPES:
            self.expect("(")
            return _cast(token, self.bracketed())
        if token in _REAL or token in _ALIKE:
            return self.call(token)
        given = {
            "score": _Term("score", True, score=1),
            "kv": _Term("kv", False, slope="1.0f"),
            **{name: _Term(name, False) for name in ("batch", "head", "q", "own")},
        }
        if token not in given:
            raise _NotLinearError
        return replace(given[token], of=frozenset((token,)), name=token)

    def bracketed(self) -> _Term:
        term = self.sum()
        self.expect(")")
        return term

    def element(self, array: str) -> _Term:
        self.expect("[")
        index = self.sum()
        self.expect("]")
        if not index.of <= _OF_HEADS or index.is_real:
            raise _NotLinearError
        is_real = self.arrays[array] in ("float16", "bfloat16", "float32")
        return _Term(f"{array}[{index.text}]", is_real, index.of)

    def call(self, function: str) -> _Term:
        self.expect("(")
        given = [self.sum()]
        while self.takes(","):
            given.append(self.sum())
        self.expect(")")
        is_real = function in _REAL or any(x.is_real for x in given)
        text = f"{function}({', '.join(x.text for x in given)})"
        of = frozenset().union(*(x.of for x in given))
        if all(x.is_constant for x in given):
            return _Term(text, is_real, of)
        if function in _ABSOLUTE and self.only_past and len(given) == 1 and given[0].past:
            return _Term(text, is_real, of, slope="(-1.0f)", past=1)
        raise _NotLinearError


def _tokens(text: str) -> list[str]:
    if "'" in text or '"' in text:
        raise _NotLinearError
    text = without_comments(text).rstrip()
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(found) == _MOST_TOKENS:
            raise _NotLinearError
        found.append(match[1])
        at = match.end()
    return found


def _negative(x: _Term) -> _Term:
    slope = x.slope and f"(-{x.slope})"
    return _Term(f"(-{x.text})", x.is_real, x.of, -x.score, slope, past=-x.past)


def _cast(kind: str, x: _Term) -> _Term:
    if not _TYPES[kind] and x.is_real and not x.is_constant:
        raise _NotLinearError
    return replace(x, text=f"{kind}({x.text})", is_real=_TYPES[kind])


def _added(a: _Term, b: _Term, sign: str) -> _Term:
    if a.score and b.score:
        raise _NotLinearError
    past = {("own", "kv"): 1, ("kv", "own"): -1}.get((a.name, b.name), 0) if sign == "-" else 0
    slope = a.slope
    if b.slope:
        slope = f"({a.slope} {sign} {b.slope})" if a.slope else f"({sign}{b.slope})"
    return _Term(
        f"({a.text} {sign} {b.text})",
        a.is_real or b.is_real,
        a.of | b.of,
        a.score + (b.score if sign == "+" else -b.score),
        slope,
        past=past,
    )


def _multiplied(a: _Term, b: _Term, operator: str) -> _Term:
    is_real = a.is_real or b.is_real
    whole = _Term(f"({a.text} {operator} {b.text})", is_real, a.of | b.of)
    if a.is_constant and b.is_constant:
        if operator == "%" and is_real:
            raise _NotLinearError
        return whole
    if operator == "*" and a.is_constant:
        a, b = b, a
    divides_integers = operator == "/" and not is_real
    if a.score or not b.is_constant or not b.of <= _OF_HEADS:
        raise _NotLinearError
    if operator == "%" or divides_integers:
        raise _NotLinearError
    return replace(whole, slope=f"({a.slope} {operator} {b.text})")
