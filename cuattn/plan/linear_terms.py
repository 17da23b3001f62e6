"""Parts of an expression that is linear in the key, and what arithmetic makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["OF_HEADS", "TYPES", "NotLinearError", "Term", "added", "cast", "multiplied", "negative"]

# Types that are cast to, and whether they are floats.
TYPES = {"float": True, "double": True, "int": False, "long": False}

# A slope is one of a warp's rows, and arrays are read though no key may be visible.
OF_HEADS = frozenset(("batch", "head"))


class NotLinearError(Exception):
    """The text says something else."""


@dataclass(frozen=True)
class Term:
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


def negative(x: Term) -> Term:
    """Return the opposite."""
    slope = x.slope and f"(-{x.slope})"
    return Term(f"(-{x.text})", x.is_real, x.of, -x.score, slope, past=-x.past)


def cast(kind: str, x: Term) -> Term:
    """Return a term as one of `TYPES`; what keys have to do with is not rounded.

    Raises
    ------
    NotLinearError
        If it is not of the form, or not understood.
    """
    if not TYPES[kind] and x.is_real and not x.is_constant:
        raise NotLinearError
    return replace(x, text=f"{kind}({x.text})", is_real=TYPES[kind])


def added(a: Term, b: Term, sign: str) -> Term:
    """Return a sum or a difference; the score is in one of the two.

    Raises
    ------
    NotLinearError
        If it is not of the form, or not understood.
    """
    if a.score and b.score:
        raise NotLinearError
    past = {("own", "kv"): 1, ("kv", "own"): -1}.get((a.name, b.name), 0) if sign == "-" else 0
    slope = a.slope
    if b.slope:
        slope = f"({a.slope} {sign} {b.slope})" if a.slope else f"({sign}{b.slope})"
    return Term(
        f"({a.text} {sign} {b.text})",
        a.is_real or b.is_real,
        a.of | b.of,
        a.score + (b.score if sign == "+" else -b.score),
        slope,
        past=past,
    )


def multiplied(a: Term, b: Term, operator: str) -> Term:
    """Return a product, quotient or remainder; keys have to do with one factor or the dividend.

    Raises
    ------
    NotLinearError
        If it is not of the form, or not understood.
    """
    is_real = a.is_real or b.is_real
    whole = Term(f"({a.text} {operator} {b.text})", is_real, a.of | b.of)
    if a.is_constant and b.is_constant:
        if operator == "%" and is_real:
            raise NotLinearError
        return whole
    if operator == "*" and a.is_constant:
        a, b = b, a
    divides_integers = operator == "/" and not is_real
    if a.score or not b.is_constant or not b.of <= OF_HEADS:
        raise NotLinearError
    if operator == "%" or divides_integers:
        raise NotLinearError
    return replace(whole, slope=f"({a.slope} {operator} {b.text})")
