"""A caller's own expressions, which enter the loop of attention kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from ..common.public import class_naming_keywords
from ..errors import ArgumentError
from ..reference.mods import PLACE, check_reference
from ..specs.mods import ModName
from .mod_text import check_name, check_text, checked_number
from .mods import ModKey, Mods

__all__ = ["MaskMod", "ScoreMod", "mod_of", "mods_of"]

M = TypeVar("M", bound="_Mod")


@dataclass(frozen=True, eq=False)
class _Mod:
    """What both kinds of expressions have in common."""

    text: str
    arrays: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    numbers: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    reference: Callable[..., Any] | None = field(default=None, kw_only=True)

    argument: ClassVar[ModName]
    given: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        check_text(self.argument, self.text)
        for kind in ("arrays", "numbers"):
            names = getattr(self, kind)
            if not isinstance(names, Mapping):
                raise ArgumentError(f"{self.argument}.{kind}", names, "a mapping of names")
            object.__setattr__(self, kind, MappingProxyType(dict(names)))
            for name in names:
                check_name(f"{self.argument}.{kind}", name, self.given)
        for name in self.arrays:
            if name in self.numbers:
                raise ArgumentError(f"{self.argument}.numbers", name, "a name that no array has")
        if self.reference is not None:
            known = (*self.given, *self.arrays, *self.numbers)
            check_reference(f"{self.argument}.reference", self.reference, known)
        _ = self.key

    @cached_property
    def key(self) -> ModKey:
        """All but the arrays themselves."""
        numbers = [checked_number(self.argument, name, x) for name, x in self.numbers.items()]
        return ModKey(self.argument, self.text, tuple(self.arrays), tuple(numbers))


@class_naming_keywords
@dataclass(frozen=True, eq=False)
class ScoreMod(_Mod):
    """An expression in CUDA C++ that a logit becomes: ``score_mod`` of `cuattn.attention`.

    `cuattn.KVCache.attend` takes it, too. It enters the loop of the kernel, which is compiled when
    it is first wanted and kept on disk. What it is given are `score`, a float: the logit in its
    natural unit, after `scale`, `softcap`, `alibi_slopes` and an `attn_mask` of floats; and
    integers: `batch`, `head` (of Q), `q` and `kv`, the indices of the row and of the key in their
    sequence, and `own`, the key that the row stands beside, which is ``q + seqlen_kv - seqlen_q``
    and may be negative. Besides it has the names of `arrays` and `numbers`. It is asked about
    visible keys only. -INFINITY hides the key, as does all below ``-7e29``; NaN makes the row NaN.

    Parameters
    ----------
    text : str
        An expression, such as ``"score + bias[head] * (kv > q)"``; or, if it holds ``return``, the
        body of a function, which leaves the logit as it is where it ends without one. CUDA's
        functions, such as ``expf`` and ``fmaxf``, can be called. It has no lines for the
        preprocessor and does not synchronize threads.
    arrays : mapping of str to array
        By the names that they have in `text`, where ``name[i]`` is element i of the memory, in C
        order: of ``[heads, n]`` it is ``name[head * n + i]``. Nobody checks the index. bool, uint8,
        int8, int32, int64, float16, bfloat16 or float32, of which the last three are floats in
        `text`; without gaps, at least one element, where Q is. No more than 8 in all
        expressions of a call.
    numbers : mapping of str to int or float
        Likewise; ``int`` of 32 bits or ``float``. Other numbers compile no other kernel.
    reference : callable, optional
        The same in NumPy, for arrays in host memory: a function of any of the names above, as
        keywords. `score` is float64 [row, key], `q` and `own` are int64 [row, 1], `kv` [1, key];
        `batch` and `head` are integers. Arrays have the shapes of `arrays`, floats as float64,
        integers as int64.

    Raises
    ------
    ArgumentError
        If the text is none, its brackets do not match, or a name is one of C++ or taken.

    Examples
    --------
    >>> distance = ScoreMod(
    ...     "score - slope * abs(own - kv)",
    ...     numbers={"slope": 0.25},
    ...     reference=lambda score, own, kv, slope: score - slope * abs(own - kv),
    ... )
    """

    argument: ClassVar[ModName] = "score_mod"
    given: ClassVar[tuple[str, ...]] = ("score", *PLACE)


@class_naming_keywords
@dataclass(frozen=True, eq=False)
class MaskMod(_Mod):
    """An expression in CUDA C++ that says whether a row sees a key; see `ScoreMod`.

    True is seen, false is hidden. It is for ``mask_mod`` of `cuattn.attention` and of
    `cuattn.KVCache.attend`, and has all names of a `ScoreMod` but `score`. A body that ends without
    ``return`` has said true.

    Parameters
    ----------
    text : str
        Such as ``"own / 8192 == kv / 8192"``.
    arrays, numbers
        As of `ScoreMod`.
    reference : callable, optional
        As of `ScoreMod`; it returns booleans that broadcast to [row, key].

    Raises
    ------
    ArgumentError
        As `ScoreMod`.
    """

    argument: ClassVar[ModName] = "mask_mod"
    given: ClassVar[tuple[str, ...]] = PLACE


def mod_of(kind: type[M], given: Any) -> M | None:
    """Return what a caller gave for an expression, text or none, as an object.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    if given is None:
        return None
    if isinstance(given, kind):
        return given
    if not isinstance(given, str):
        expected = f"text, a cuattn.{kind.__name__} or None"
        raise ArgumentError(kind.argument, given, expected)
    of: Any = kind
    made: M = _of_text(of, given)
    return made


def mods_of(*mods: _Mod | None) -> tuple[Mods, dict[str, Any]]:
    """Return the expressions of a call, `score_mod` and `mask_mod`, and their arrays in order.

    Raises
    ------
    ArgumentError
        If there are more arrays or numbers than a kernel can be told.
    """
    keys = Mods(*(None if mod is None else mod.key for mod in mods))
    keys.check_counts()
    arrays = {
        mod.key.label(name): x for mod in mods if mod is not None for name, x in mod.arrays.items()
    }
    return keys, arrays


@lru_cache(256)
def _of_text(kind: Callable[[str], Any], text: str) -> Any:
    return kind(text)
