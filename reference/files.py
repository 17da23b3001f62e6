"""Q, K and V from a file: ``.npz`` as NumPy writes it, or ``.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..common.text import listed, printable
from ..errors import ArgumentError
from .arrays import Shape
from .file_arrays import Arrays, npz_arrays, safetensors_arrays

__all__ = ["Call", "load", "read_call"]

READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": npz_arrays,
    ".safetensors": safetensors_arrays,
}

# Settings of a call that a file may have beside its arrays, by the names that libraries use.
SCALES = ("scale", "softmax_scale", "sm_scale")
CAUSAL = ("is_causal", "causal")
# What changes the result and is not carried out here, besides all that has "mask" or "bias" in
# its name.
REFUSED = (
    *("window", "window_size", "sliding_window", "softcap", "logit_cap", "sinks", "sink"),
    *("dropout_p", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k", "block_table"),
)


@dataclass(frozen=True, eq=False)
class Call:
    """What a file says of one call of attention.

    Attributes
    ----------
    q : ndarray [batch, num_q_heads, seqlen_q, head_dim]
    k, v : ndarray [batch, num_kv_heads, seqlen_kv, head_dim]
        float16 stays float16; every other type becomes float32.
    scale : float or None
        Factor of the logits; None where the file has none.
    is_causal : bool or None
        Whether later keys are hidden; None where the file does not say.
    """

    q: NDArray[np.floating]
    k: NDArray[np.floating]
    v: NDArray[np.floating]
    scale: float | None
    is_causal: bool | None


def load(
    path: str | Path, keys: Mapping[str, str] | None = None
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Read the arrays "q", "k" and "v" from a file.

    Parameters
    ----------
    path : str or Path
        A ``.npz`` or ``.safetensors`` file. Arrays are [batch, head, token, head_dim]; without the
        batch axis, one is added.
    keys : mapping of str to str, optional
        What the file calls "q", "k" or "v" where it is something else.

    Returns
    -------
    q : ndarray [batch, num_q_heads, seqlen_q, head_dim]
    k, v : ndarray [batch, num_kv_heads, seqlen_kv, head_dim]
        float16 stays float16; every other type becomes float32.

    Raises
    ------
    ArgumentError
        As `read_call`, or if the file has a scale or a causal mask, which this would lose.
    """
    call = read_call(path, keys)
    for name, value in (("scale", call.scale), ("is_causal", call.is_causal or None)):
        if value is not None:
            raise ArgumentError("path", str(path), f"without {name}, or read by read_call")
    return call.q, call.k, call.v


def read_call(path: str | Path, keys: Mapping[str, str] | None = None) -> Call:
    """Read a call of attention from a file: "q", "k" and "v", and "scale" and "is_causal" if there.

    Parameters
    ----------
    path, keys
        As for `load`. Arrays by other names are left alone.

    Returns
    -------
    Call

    Raises
    ------
    ArgumentError
        If there is no such file, it is of another kind or damaged, an array is missing or of a
        type that is not floating-point, the arrays do not fit each other, or the file has a mask
        or another setting that is not carried out; names the file and its member.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ArgumentError("path", str(path), "a .npz or .safetensors file")
    if not _is_file(path):
        raise ArgumentError("path", str(path), "an existing file")
    names = {"q": "q", "k": "k", "v": "v", **(keys or {})}
    if len(names) > 3:
        raise ArgumentError("keys", dict(names), "names of q, k and v")
    arrays = _of_file(path, lambda: READERS[path.suffix](path))
    for name in arrays:
        if _is_refused(name) and name not in names.values():
            raise ArgumentError(
                "path", str(path), f"a file without {printable(name)!r}, which is not carried out"
            )
    q, k, v = (_array(path, name, key, arrays) for name, key in names.items())
    Shape.of(q.shape, k.shape, v.shape)
    scale = _setting(path, SCALES, arrays, "a finite number", math.isfinite)
    is_causal = _setting(path, CAUSAL, arrays, "0 or 1", lambda x: x in (0, 1))
    return Call(q, k, v, scale, None if is_causal is None else bool(is_causal))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one with a NUL
        return False


def _is_refused(name: str) -> bool:
    name = name.lower()
    return "mask" in name or "bias" in name or name in REFUSED


def _of_file(path: Path, read: Callable[[], Any], member: str | None = None) -> Any:
    """Call what raises a ValueError or an OSError for a damaged file, and say which file it is."""
    try:
        return read()
    except (OSError, ValueError) as error:
        where = "" if member is None else f"{printable(member)!r}: "
        expected = f"a readable {path.suffix} file ({where}{printable(str(error))})"
        raise ArgumentError("path", str(path), expected) from None


def _array(path: Path, name: str, key: str, arrays: Arrays) -> NDArray[np.floating]:
    if key not in arrays:
        raise ArgumentError(
            "path",
            str(path),
            f"a file with an array {printable(key)!r} (it has {listed(arrays)}; keys such as "
            "q=query say which is meant)",
        )
    x = _of_file(path, arrays[key], key)
    if x.dtype.kind != "f":
        raise ArgumentError(f"{name}.dtype", x.dtype.name, f"a floating-point type in {path}")
    if x.ndim not in (3, 4):
        raise ArgumentError(f"{name}.shape", x.shape, f"[batch,] head, token, head_dim in {path}")
    if x.dtype != np.float16:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            x = x.astype(np.float32)
    return cast("NDArray[np.floating]", x if x.ndim == 4 else x[None])


def _setting(
    path: Path,
    names: tuple[str, ...],
    arrays: Arrays,
    expected: str,
    is_good: Callable[[float], bool],
) -> float | None:
    """Return a number that a file has under one of some names."""
    found = [name for name in names if name in arrays]
    if not found:
        return None
    if len(found) > 1:
        raise ArgumentError("path", str(path), f"a file with only one of {listed(found)}")
    (name,) = found
    x = _of_file(path, arrays[name], name)
    if x.size != 1:
        raise ArgumentError(f"{name} in {path}", x, f"one number, {expected}")
    value = float(x.reshape(-1)[0])
    if not is_good(value):
        raise ArgumentError(f"{name} in {path}", value, expected)
    return value
