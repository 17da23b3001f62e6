"""A caller's own expressions in an attention kernel: their text, and the C++ that it becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["ELEMENTS", "MOST", "ModName", "ModSource", "has_return", "prelude", "without_comments"]

ModName: TypeAlias = Literal["score_mod", "mask_mod", "score_slope"]

# Arrays of a call, and numbers: AttentionParams::user, DecodeParams::user.
MOST = 8

# Types of arrays by the names of their elements, and bytes of one: attn/user_arrays.cuh.
ELEMENTS = {
    "bool": ("UserArray<bool>", 1),
    "uint8": ("UserArray<u8>", 1),
    "int8": ("UserArray<i8>", 1),
    "int32": ("UserArray<i32>", 4),
    "int64": ("UserArray<i64>", 8),
    "float16": ("UserHalves<Type::fp16>", 2),
    "bfloat16": ("UserHalves<Type::bf16>", 2),
    "float32": ("UserArray<f32>", 4),
}

_NUMBERS = {"int": ("int", "whole"), "float": ("float", "real")}

# What an expression is given besides its names, and what a function that ends without saying
# anything has said.
_GIVEN: dict[ModName, tuple[str, tuple[str, ...], str]] = {
    "score_mod": ("float", ("float score",), "score"),
    "mask_mod": ("bool", (), "true"),
    "score_slope": ("float", (), "0"),
}
_PLACE = ("int batch", "int head", "int q", "int kv", "int own")

# A comment of a line goes on in the next one after a backslash.
_QUOTED = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//(?:\\\r?\n|[^\n])*|/\*.*?\*/', re.DOTALL
)


@dataclass(frozen=True)
class ModSource:
    """Member of `Rules`, of which C++ sees only that it is there.

    Attributes
    ----------
    name : {"score_mod", "mask_mod", "score_slope"}
    text : str
        An expression, or the body of a function.
    arrays, numbers : tuple of (str, str)
        Names and their types: a key of `ELEMENTS`, and "int" or "float".
    first_array, first_number : int
        Where theirs begin among those of the call.
    """

    name: ModName
    text: str
    arrays: tuple[tuple[str, str], ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    first_array: int = 0
    first_number: int = 0

    def cxx(self) -> str:
        """Render the member of the struct."""
        return "true"

    def function(self) -> str:
        """Return the function that attn/user_functions.cuh declares, the text inside another."""
        returns, score, otherwise = _GIVEN[self.name]
        place = [*score, *_PLACE]
        typed = [f"{ELEMENTS[dtype][0]} {name}" for name, dtype in self.arrays]
        typed += [f"{_NUMBERS[kind][0]} {name}" for name, kind in self.numbers]
        values = [parameter.split()[1] for parameter in place]
        at = enumerate(self.arrays, self.first_array)
        values += [f"{{values[{i}].array}}" for i, _ in at]
        of_numbers = enumerate(self.numbers, self.first_number)
        values += [f"values[{i}].{_NUMBERS[kind][1]}" for i, (_, kind) in of_numbers]
        text = self.text
        if not has_return(text):
            # Where its last line has no comment the bracket follows it: messages name that line.
            last = re.sub(r"\\\r?\n", "", text).rpartition("\n")[2]
            end = "\n" if "//" in last else ""
            text = f"return ({text}{end});"
        return (
            f"namespace user {{\n"
            f"__device__ __forceinline__ {returns} {self.name}({', '.join((*place, *typed))}) {{\n"
            f'#line 1 "{self.name}"\n'
            f"{text}\n"
            f'#line 1 "cuattn"\n'
            f"return {otherwise};\n}}\n}}\n"
            f"__device__ __forceinline__ {returns} user_{self.name}"
            f"({', '.join(('const UserValue* values', *place))}) {{\n"
            f"return user::{self.name}({', '.join(values)});\n}}\n"
        )


def prelude(*mods: ModSource | None) -> str:
    """Return what stands before the includes of a unit; nothing without expressions."""
    functions = "".join(mod.function() for mod in mods if mod is not None)
    return f'#include "attn/user_arrays.cuh"\n{functions}' if functions else ""


def without_comments(text: str) -> str:
    """Return a text without its comments, and with empty strings."""
    return _QUOTED.sub(" ", text)


def has_return(text: str) -> bool:
    """Whether a text is the body of a function."""
    return re.search(r"\breturn\b", without_comments(text)) is not None
