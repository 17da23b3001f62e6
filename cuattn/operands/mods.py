"""The expressions of a call that change its logits or hide keys: looked at, and put in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..specs.mods import ELEMENTS, MOST, ModName, ModSource
from .operand import compact_strides

__all__ = ["ModKey", "Mods", "Number", "mod_sources"]


class Number(NamedTuple):
    """A number that an expression names.

    Attributes
    ----------
    name : str
    kind : {"int", "float"}
    text : str
        Exactly, as ``int()`` and ``float.fromhex`` read it: equal ones are the same bits.
    """

    name: str
    kind: str
    text: str

    @property
    def value(self) -> float:
        """The number itself."""
        return int(self.text) if self.kind == "int" else float.fromhex(self.text)


class ModKey(NamedTuple):
    """All of an expression but its arrays themselves: a part of the key of plans.

    Attributes
    ----------
    name : {"score_mod", "mask_mod"}
    text : str
    arrays : tuple of str
        Their names.
    numbers : tuple of Number
    """

    name: ModName
    text: str
    arrays: tuple[str, ...]
    numbers: tuple[Number, ...]

    def label(self, array: str) -> str:
        """Return what errors call an array."""
        return f"{self.name}.{array}"


class Mods(NamedTuple):
    """The expressions of a call; None of those that it has not."""

    score_mod: ModKey | None = None
    mask_mod: ModKey | None = None

    @property
    def given(self) -> tuple[ModKey, ...]:
        """Those that there are."""
        return tuple(mod for mod in self if mod is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """What errors call the arrays, in their order."""
        return tuple(mod.label(name) for mod in self.given for name in mod.arrays)

    @property
    def numbers(self) -> tuple[Number, ...]:
        """Those of all expressions, in their order."""
        return tuple(number for mod in self.given for number in mod.numbers)

    def check_counts(self) -> None:
        """Check that a kernel can be told all arrays and numbers.

        Raises
        ------
        ArgumentError
        """
        for kind, names in (("arrays", self.labels), ("numbers", [x.name for x in self.numbers])):
            if len(names) > MOST:
                of = " and ".join(mod.name for mod in self.given)
                raise ArgumentError(kind, list(names), f"at most {MOST} in {of}")


def mod_sources(
    mods: Mods | None, arrays: Sequence[Array], device: tuple[int, int]
) -> tuple[ModSource | None, ModSource | None]:
    """Check the arrays of a call's expressions, and return what kernels are compiled of.

    Parameters
    ----------
    mods : Mods, optional
    arrays : sequence of Array
        In the order of `Mods.labels`.
    device : tuple of int
        Where they have to be.

    Returns
    -------
    score_mod, mask_mod : ModSource or None

    Raises
    ------
    ArgumentError
        If an array has another place, a type that kernels do not know, gaps or no elements.
    """
    if mods is None:
        return None, None
    sources: list[ModSource | None] = []
    first_array = first_number = 0
    for mod in mods:
        if mod is None:
            sources.append(None)
            continue
        own = arrays[first_array : first_array + len(mod.arrays)]
        for name, x in zip(mod.arrays, own, strict=True):
            _check(mod.label(name), x, device)
        typed = tuple((name, x.dtype) for name, x in zip(mod.arrays, own, strict=True))
        kinds = tuple((x.name, x.kind) for x in mod.numbers)
        sources.append(ModSource(mod.name, mod.text, typed, kinds, first_array, first_number))
        first_array += len(own)
        first_number += len(kinds)
    return sources[0], sources[1]


def _check(label: str, x: Array, device: tuple[int, int]) -> None:
    if x.dtype not in ELEMENTS:
        raise ArgumentError(f"{label}.dtype", x.dtype, f"one of {[*ELEMENTS]}")
    if x.device != device:
        raise ArgumentError(f"{label}.device", x.device, f"{device}, the device of q")
    if not all(x.shape):
        raise ArgumentError(f"{label}.shape", x.shape, "that of an array with elements")
    wanted = compact_strides(x.shape) if x.shape else ()
    steps = zip(x.shape, x.strides, wanted, strict=True)
    if any(n > 1 and step != compact for n, step, compact in steps):
        expected = f"{wanted}, without gaps and the last axis first: expressions index memory"
        raise ArgumentError(f"{label}.strides", x.strides, expected)
    size = ELEMENTS[x.dtype][1]
    if x.misalignment % size:
        found = f"an address that is {x.misalignment % size} more than one"
        raise ArgumentError(
            label, found, f"at a multiple of {size} bytes, the size of its elements"
        )
