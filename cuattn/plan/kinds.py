"""What a call was given, as a key: all of it but the addresses of its arrays.

Calls with equal keys pass the same checks and have the same launches. Each argument adds what it is
in a form that no other kind of argument has, so that keys say which is which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from ..arrays.pytorch import check_of_tensors, look_at_plain
from ..arrays.view import CUDA
from ..operands.block_mask import BlockMask
from ..operands.quantized import QuantizedTensor
from ..operands.score_mod import MaskMod, ScoreMod
from ..scheme import Scheme

__all__ = ["Kind", "addresses_of", "is_cupys", "is_pytorchs", "ordinal_of"]

# Adds to a key and to addresses; False if the array needs a closer look.
Look: TypeAlias = Callable[[Any, list[Any], list[int]], bool]

# Bytes by which addresses are told apart in keys.
_ALIGNMENT = 16

# Options that are what they say; in a key with their types, for 1 must not pass for True.
_PLAIN = frozenset({type(None), bool, int, float, str, Scheme})


def addresses_of(values: Iterable[Any], key: list[Any]) -> list[int] | None:
    """Add what arguments are to a key, and return the addresses of the arrays among them.

    Parameters
    ----------
    values : iterable of object
        Of a `QuantizedTensor` there are four addresses: codes, scale, vector and order; of a
        `BlockMask` two, its own and that of its map; of an expression those of its arrays.
    key : list

    Returns
    -------
    list of int, or None
        None if something has to be looked at closely in every call: an array of another library or
        in host memory, a tensor that is not plain, or what may be wrong.
    """
    addresses: list[int] = []
    for x in values:
        kind = type(x)
        look = _looks.get(kind)
        if look is not None:
            if not look(x, key, addresses):
                return None
        elif kind in _PLAIN:
            key += (kind, x)
        elif kind is tuple:  # a window
            types = [type(each) for each in x]
            if not _PLAIN.issuperset(types):
                return None
            key += (kind, x, *types)
        else:
            look = _learned(kind)
            if look is None or not look(x, key, addresses):
                return None
    return addresses


class Kind:
    """Recognizes arguments of one kind, in a quarter of the time that `addresses_of` takes.

    It is for tensors of PyTorch, which its own compiler checks by one call, tensors that are
    quantized already, and options; it can do without the former or the latter.

    Parameters
    ----------
    values : tuple of object
        Arguments of the kind, for which `addresses_of` gives addresses.

    Raises
    ------
    LookupError
        If there are other arrays among them, tensors that are not aligned, or PyTorch has no such
        check.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._tensors: list[int] = []
        self._quantized: list[tuple[int, object, int]] = []
        self._options: list[tuple[int, Any]] = []
        found = 0
        for i, x in enumerate(values):
            if is_pytorchs(x):
                self._tensors.append(i)
                found += 1
            elif isinstance(x, QuantizedTensor):
                self._quantized.append((i, x.kind, found))
                found += len(x.all_addresses)
            elif type(x) in _PLAIN or type(x) is tuple:
                self._options.append((i, x))
            else:
                raise LookupError
        self._has_others = len(self._tensors) < len(values)
        tensors = [values[i] for i in self._tensors]
        if any(x.data_ptr() % _ALIGNMENT for x in tensors):  # which no address is asked for
            raise LookupError
        self._check = check_of_tensors(tensors)

    def addresses_of(self, values: tuple[Any, ...]) -> list[int] | None:
        """Return the addresses of the arrays among as many arguments; None if in doubt."""
        for i, option in self._options:
            x = values[i]
            if x is not option and not _is_same(x, option):
                return None
        tensors: Sequence[Any] = values
        if self._has_others:
            tensors = [values[i] for i in self._tensors]
        try:
            for x in tensors:
                if x.is_nested:
                    return None
        except AttributeError:  # no tensor
            return None
        if not self._check(*tensors):
            return None
        addresses = [x.data_ptr() for x in tensors]
        for address in addresses:
            if address % _ALIGNMENT or not address:
                return None
        for i, kind, place in self._quantized:
            x = values[i]
            if type(x) is not QuantizedTensor or x.kind is not kind:
                return None
            addresses[place:place] = x.all_addresses
        return addresses


def _is_same(x: Any, y: Any) -> bool:
    if type(x) is not type(y) or x != y:
        return False
    return type(x) is not tuple or [*map(type, x)] == [*map(type, y)]


def is_pytorchs(x: object) -> bool:
    """Whether an argument that has addresses is a tensor of PyTorch."""
    return _looks.get(type(x)) is look_at_plain


def is_cupys(x: object) -> bool:
    """Whether an argument that has addresses is an array of CuPy."""
    return _looks.get(type(x)) is _look_at_cupys


def ordinal_of(x: Any) -> int:
    """Return the GPU of an array that has addresses."""
    if isinstance(x, QuantizedTensor):
        return x.device[1]
    ordinal: int = x.get_device() if is_pytorchs(x) else x.data.device_id
    return ordinal


def _learned(kind: type) -> Look | None:
    """Return how arrays of a class are looked at; None if it is none of PyTorch's or CuPy's."""
    # While they are being imported they have no classes yet.
    torch: Any = sys.modules.get("torch")
    cupy: Any = sys.modules.get("cupy")
    look: Look | None = None
    if hasattr(torch, "Tensor") and kind in (torch.Tensor, torch.nn.Parameter):
        look = look_at_plain
    elif hasattr(cupy, "ndarray") and kind is cupy.ndarray:
        look = _look_at_cupys
    if look is not None:
        _looks[kind] = look
    return look


def _look_at_cupys(x: Any, key: list[Any], addresses: list[int]) -> bool:
    data = x.data
    address = data.ptr
    key += (x.shape, x.strides, x.dtype, data.device_id, address % _ALIGNMENT)
    addresses.append(address)
    return bool(address)


def _look_at_quantized(x: QuantizedTensor, key: list[Any], addresses: list[int]) -> bool:
    if x.device[0] != CUDA:
        return False
    key.append(x.kind)
    addresses += x.all_addresses
    return True


def _look_at_mask(x: BlockMask, key: list[Any], addresses: list[int]) -> bool:
    if x.device[0] != CUDA:
        return False
    key.append(x.signature)
    addresses += (x.ptr, x.map_ptr)
    return True


def _look_at_mod(x: ScoreMod | MaskMod, key: list[Any], addresses: list[int]) -> bool:
    key.append(x.key)
    found = addresses_of(x.arrays.values(), key)
    if found is None:
        return False
    addresses += found
    return True


_looks: dict[type, Look] = {
    QuantizedTensor: _look_at_quantized,
    BlockMask: _look_at_mask,
    ScoreMod: _look_at_mod,
    MaskMod: _look_at_mod,
}
