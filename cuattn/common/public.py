"""What public functions do at their door: name mistaken keywords, keep Dynamo and old CuPy out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..errors import KeywordError, UnsupportedError

__all__ = ["check_cupy", "public"]

P = ParamSpec("P")
T = TypeVar("T")

# What other libraries call the same: PyTorch, FlashAttention, SageAttention, xFormers, FlashInfer.
_SAME = {
    "causal": "is_causal",
    "use_causal_mask": "is_causal",
    "softmax_scale": "scale",
    "sm_scale": "scale",
    "scale_factor": "scale",
    "tensor_layout": "layout",
    "qkv_layout": "layout",
    "qkv_format": "layout",
    "kv_layout": "layout",
    "return_softmax_lse": "return_lse",
    "return_attn_probs": "return_lse",
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "out",
    "cuda_stream": "stream",
    "preset": "scheme",
    "quantization": "scheme",
}

# Kernels get their arguments as one struct by its address, which CPointer of CuPy 13 does not take:
# it passes that of the Python object, and the kernel reads and writes anywhere.
_OLDEST_CUPY = 14
_CPU = 1  # DLPack's

_NOT_TRACED = "it launches kernels of its own; as an operator it can be part of a graph"


def public(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that says which keyword was meant, and that `torch.compile` calls as it is.

    An unknown keyword raises `KeywordError`, before anything is done. In a function that is
    compiled, a call breaks the graph: Dynamo traces nothing inside, where it would replace NumPy.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _cupy_is_good and any(map(_is_on_gpu, args)):
            check_cupy()
        try:
            if "torch._dynamo" in sys.modules:
                untraced: Callable[P, T] = _untraced(function)
                return untraced(*args, **kwargs)
            return function(*args, **kwargs)
        except TypeError:
            _check_keywords(function, kwargs)
            raise

    return _break_graph(called)


def check_cupy() -> None:
    """Refuse a CuPy by which kernels cannot be launched, before anything is.

    Raises
    ------
    UnsupportedError
        If it is older than 14.
    """
    try:
        import cupy
    except (ImportError, OSError):
        return  # which whoever needs it says
    version = str(getattr(cupy, "__version__", _OLDEST_CUPY))
    if int(version.partition(".")[0]) < _OLDEST_CUPY:
        raise UnsupportedError(
            f"CuPy {version} cannot launch kernels of cuattn, which need {_OLDEST_CUPY} or newer: "
            f"pip install -U 'cupy-cuda12x>={_OLDEST_CUPY}', or cupy-cuda13x"
        )
    _cupy_is_good.append(None)


# Not empty once CuPy has been found good.
_cupy_is_good: list[None] = []


def _is_on_gpu(x: object) -> bool:
    """Whether an argument has to do with a GPU: an array there, a quantized tensor or a cache."""
    where = getattr(x, "__dlpack_device__", None)
    if where is None:
        # Codes of a quantized tensor, lengths of a cache.
        own = (getattr(x, name, None) for name in ("codes", "device_lengths"))
        return any(type(array).__module__.startswith("cupy") for array in own)
    try:
        return int(where()[0]) != _CPU
    except Exception:  # what it is, and what is wrong with it, is looked at later
        return False


def _break_graph(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function as `torch.compiler.disable` does, without importing PyTorch."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = _NOT_TRACED  # type: ignore[attr-defined]
    return function


@_break_graph
def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as it is called without Dynamo looking at any frame below."""
    if function not in _made_untraced:
        torch: Any = sys.modules["torch"]
        _made_untraced[function] = torch.compiler.disable(function)
    return _made_untraced[function]


_made_untraced: dict[Callable[..., Any], Callable[..., Any]] = {}


def _check_keywords(function: Callable[..., Any], given: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for name, value in given.items():
        if name not in known:
            raise KeywordError(name, value, _meant(name, known)) from None


def _meant(name: str, known: list[str]) -> str:
    same = _SAME.get(name.lower())
    close = [same] if same in known else get_close_matches(name.lower(), known, 1, 0.7)
    return repr(close[0]) if close else f"one of {known}"
