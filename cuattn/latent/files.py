"""Latent caches in files of the safetensors format."""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..kv.files import Form, read
from ..kv.saved import Saved
from ..kv_format import KVFormat
from ..reference.layout import in_slots, in_tokens
from .format import LATENT_UNIT_TOKENS, LatentFormat, LatentGeometry
from .units import parts_of

__all__ = ["FORM", "read_latent"]


def _cleared(units: NDArray[np.uint8], kv_format: KVFormat, length: int) -> NDArray[np.uint8]:
    """Return units of a sequence, uint8 [1, 1, unit of 16 tokens, byte], in memory of their own.

    What lies beyond `length` tokens, which are in the last unit, is 0.
    """
    whole: NDArray[np.uint8] = units.reshape(-1, LatentFormat.whole_bytes).copy()
    if length:
        there = (length - 1) % LATENT_UNIT_TOKENS + 1
        parts = parts_of(whole[-1:])
        parts.codes[:, :, there:], parts.rope[:, :, there:] = 0, 0
        natural = in_tokens(parts.scale)
        natural[:, there:] = 0
        parts.scale[...] = in_slots(natural)
    return whole.reshape(units.shape)


FORM = Form("cuattn latent KV cache", "1", LatentGeometry, _cleared)


def read_latent(path: str | PathLike[str]) -> Saved:
    """Read a file of a latent cache, and check all of it: see `kv.files.read`.

    Raises
    ------
    ArgumentError
        If there is no such file, or it is another one or damaged.
    CuattnError
        If the package safetensors is missing.
    """
    saved = read(path, FORM)
    if saved.k_offset is not None:
        raise ArgumentError("path", fspath(path), f"a file of a {FORM.kind}, without a k_offset")
    return saved
