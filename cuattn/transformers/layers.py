"""The layers of a model: which are left out, and which scheme another one has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..choice.scheme_plan import SchemePlan
from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme

__all__ = ["Schemes", "check_layers"]

# By a table of times, at the call.
_AUTO = ("auto", "auto-block")


def check_layers(skip: Iterable[int]) -> frozenset[int]:
    """Return numbers of layers.

    Raises
    ------
    ArgumentError
        If they are anything else.
    """
    numbers = [skip] if isinstance(skip, (str, int)) else list(skip)
    if not all(is_whole_number(i) and i >= 0 for i in numbers) or isinstance(skip, (str, int)):
        raise ArgumentError("skip", skip, "numbers of layers, as (0, 31)")
    return frozenset(map(int, numbers))


class Schemes:
    """The scheme of each layer.

    Parameters
    ----------
    given : str, Scheme or SchemePlan
        Of a plan the entry "layer 3", or "3", is that of the layer with the number 3.

    Raises
    ------
    ArgumentError
        If it is none of these.
    """

    def __init__(self, given: str | Scheme | SchemePlan) -> None:
        if not isinstance(given, SchemePlan) and given not in _AUTO:
            resolve(given)
        self._given = given

    def of(self, module: Any) -> str | Scheme:
        """Return the scheme of a layer's module.

        Raises
        ------
        ArgumentError
            If a plan has none for it, or the module does not know which layer it is.
        """
        if not isinstance(self._given, SchemePlan):
            return self._given
        number = number_of(module)
        for key in (f"layer {number}", str(number)):
            if key in self._given.schemes:
                return self._given[key]
        expected = f"a plan with an entry 'layer {number}'; it has {list(self._given.schemes)}"
        raise ArgumentError("scheme", type(module).__name__, expected)


def number_of(module: Any) -> int | None:
    """Return the number of the layer that a module of attention is in, if it says so."""
    found: int | None = getattr(module, "layer_idx", None)
    return found
