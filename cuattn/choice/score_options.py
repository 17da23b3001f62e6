"""Options of scores of a call that is measured, for the call and for the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..arrays.caller import device_of
from ..arrays.host import to_host
from ..arrays.view import CPU
from ..errors import ArgumentError

__all__ = ["ScoreOptions", "refuse_options"]

_ARRAYS = ("sinks", "attn_mask", "alibi_slopes")


class ScoreOptions(NamedTuple):
    """Those that do something, by their names.

    Attributes
    ----------
    of_call : dict of str to object
        Arrays are on the GPU if the call is.
    of_reference : dict of str to object
        Arrays are NumPy's.
    """

    of_call: dict[str, Any]
    of_reference: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any], on_gpu: bool) -> ScoreOptions:
        """Copy what the call or the reference does not read where it is."""
        found = cls({}, {})
        for name, x in _that_count(given).items():
            values = _values(x, name) if name in _ARRAYS else x
            found.of_reference[name] = values
            found.of_call[name] = x
            if on_gpu and name in _ARRAYS and _device(x, name) == CPU:
                import cupy

                found.of_call[name] = cupy.asarray(values)
        return found


def refuse_options(given: Mapping[str, Any], expected: str) -> None:
    """Refuse options that do something.

    Raises
    ------
    ArgumentError
        Naming the first.
    """
    for name, x in _that_count(given).items():
        raise ArgumentError(name, x, expected)


def _that_count(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is as if it were not given."""
    return {name: x for name, x in given.items() if x is not None and not _is_neutral(name, x)}


def _is_neutral(name: str, x: Any) -> bool:
    if name == "window_size":
        return isinstance(x, (tuple, list)) and tuple(x) == (-1, -1)
    return name == "softcap" and isinstance(x, (int, float)) and x == 0


def _device(x: Any, name: str) -> int:
    return CPU if isinstance(x, np.ndarray) else device_of(x, name)[0]


def _values(x: Any, name: str) -> Any:
    """Return an array as NumPy's; of booleans as well, which no operand has."""
    if "bool" not in str(getattr(x, "dtype", "")):
        return to_host(x, name).values
    if isinstance(x, np.ndarray):
        return x
    if _device(x, name) == CPU:
        return np.from_dlpack(x)
    import cupy

    return cupy.asnumpy(cupy.from_dlpack(x))
