"""Schemes and expressions as constants of a graph: operators take text and numbers, not objects."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from ..errors import ArgumentError
from ..operands.score_mod import MaskMod, ScoreMod, mod_of
from ..scheme import Scheme

__all__ = ["mod_at", "number_of_mod", "scheme_of", "scheme_text"]

M = TypeVar("M", ScoreMod, MaskMod)

_FIELDS = tuple(field.name for field in fields(Scheme) if field.name != "name")
_SEPARATOR = "\n"


def scheme_text(scheme: str | Scheme) -> str:
    """Return a scheme as text, which the name of a preset is already.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if isinstance(scheme, str):
        return scheme
    if not isinstance(scheme, Scheme):
        raise ArgumentError("scheme", scheme, "the name of a preset, or a cuattn.Scheme")
    return _SEPARATOR.join([scheme.name] + [f"{name}={getattr(scheme, name)}" for name in _FIELDS])


@lru_cache(256)
def scheme_of(text: str) -> str | Scheme:
    """Return what `scheme_text` made text of."""
    name, *pairs = text.split(_SEPARATOR)
    if len(pairs) < len(_FIELDS):
        return text
    values: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs[-len(_FIELDS) :])
    name = _SEPARATOR.join([name, *pairs[: -len(_FIELDS)]])
    typed: dict[str, Any] = {key: int(x) if x.isdigit() else x for key, x in values.items()}
    return Scheme(name, **typed)


def number_of_mod(kind: type[M], given: str | M | None) -> int:
    """Return the number of an expression, by which `mod_at` has it; 0 for none.

    It lives as long as the caller's object, or for ever if `torch.compile` has put it into a graph.

    Raises
    ------
    ArgumentError
        If it is no expression.
    """
    if given is None:
        return 0
    if torch.compiler.is_compiling():
        number: int = _kept(kind, given)
        return number
    return _number(kind, given)


def mod_at(number: int) -> Any:
    """Return the expression of a number.

    Raises
    ------
    ArgumentError
        If there is none any more.
    """
    if not number:
        return None
    try:
        return _mods[number]
    except KeyError:
        raise ArgumentError("score_mod", number, "kept by its owner until the call") from None


_numbers = count(1)
_mods: WeakValueDictionary[int, ScoreMod | MaskMod] = WeakValueDictionary()
_in_graphs: list[ScoreMod | MaskMod] = []


def _number(kind: type[M], given: str | M) -> int:
    mod: Any = mod_of(kind, given)
    if not hasattr(mod, "_number"):
        object.__setattr__(mod, "_number", next(_numbers))
        _mods[mod._number] = mod
    number: int = mod._number
    return number


def _number_for_ever(kind: type[M], given: str | M) -> int:
    number = _number(kind, given)
    _in_graphs.append(_mods[number])
    return number


# Dynamo calls it itself and takes its result for a constant.
_kept = torch.compiler.assume_constant_result(_number_for_ever)
