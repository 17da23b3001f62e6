"""A caller's expression compiled by itself first, so that what is wrong with it is said of it."""

from __future__ import annotations

import re
from functools import lru_cache

from ..compile.jit import image_of
from ..errors import CompileError
from ..specs.mods import ModSource, prelude

__all__ = ["check_user_code"]

# Expressions of a process that are known to compile.
_REMEMBERED = 1024

# A message of the compiler begins with the file and the line.
_MESSAGE = re.compile(r"^(\S+)\((\d+)\): ((?:catastrophic )?error|warning|note)\b", re.MULTILINE)


def check_user_code(mod: ModSource | None, arch: str) -> None:
    """Compile a function of nothing but an expression, unless one is known to compile.

    Raises
    ------
    CompileError
        If it does not; with what the compiler says of the lines of the caller's text, and no other.
    UnsupportedError
        As `cuattn.compile.nvrtc.compile_source`.
    """
    if mod is not None:
        _check(mod, arch)


@lru_cache(_REMEMBERED)
def _check(mod: ModSource, arch: str) -> None:
    score = "*x, " if mod.name == "score_mod" else ""
    unit = (
        f"{prelude(mod)}"
        'extern "C" __global__ void check(const UserValue* values, float* x) {\n'
        f"*x = user_{mod.name}(values, {score}0, 0, 0, 0, 0);\n}}\n"
    )
    try:
        image_of(unit, arch)
    except CompileError as error:
        if not error.log:
            raise
        raise CompileError(
            f"{mod.name} does not compile for sm_{arch}", _of_text(error.log, mod.name)
        ) from None


def _of_text(log: str, name: str) -> str:
    """Return the errors of a log that are about lines of the text, or all without their lines."""
    begins = [*_MESSAGE.finditer(log)]
    ends = [match.start() for match in begins[1:]] + [len(log)]
    found = [
        (match[1], log[match.start() : end].strip())
        for match, end in zip(begins, ends, strict=True)
        if "error" in match[3]
    ]
    own = [_without_count(text) for file, text in found if file == name]
    if own:
        return "\n".join(own)
    rest = [text.partition("\n")[0].partition(": ")[2] for _, text in found]
    return "\n".join(f"{name}: {text}" for text in rest) or f"{name}: the compiler gave up"


def _without_count(text: str) -> str:
    return re.sub(r"\n+\d+ errors? detected in the compilation.*", "", text, flags=re.DOTALL)
