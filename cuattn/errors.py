"""The exceptions of this package: one base class, and under it what a caller may tell apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "ArgumentError",
    "CompileError",
    "CuattnError",
    "DistributedError",
    "KeywordError",
    "MismatchError",
    "NoGPUError",
    "RankTimeoutError",
    "UnsupportedError",
]

# Longer values (arrays, long lists) are cut: the message has to stay one readable line.
_SHOWN = 120


class CuattnError(Exception):
    """Base class of every error that this package raises on purpose."""


class ArgumentError(CuattnError, ValueError):
    """A caller's argument is not acceptable.

    Parameters
    ----------
    argument : str
        Name of the argument as the caller wrote it, for example ``"head_dim"``.
    value : object
        What was given. The message shows its ``repr`` shortened to one line, of an array only type,
        shape and dtype.
    expected : str
        What would have been accepted, completing the sentence "<argument> must be ...".
    """

    def __init__(self, argument: str, value: object, expected: str) -> None:
        self.argument = argument
        self.value = value
        self.expected = expected
        super().__init__(f"{argument} must be {expected}, got {_one_line(value)}")

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, object, str]]:
        # Exception pickles its message as the only argument; ours takes three.
        return type(self), (self.argument, self.value, self.expected)


class KeywordError(ArgumentError, TypeError):
    """There is no argument of that name; a TypeError too, as Python raises for any function.

    Parameters
    ----------
    argument : str
        The keyword.
    value : object
        What was given with it.
    expected : str
        The name that was meant, or those that there are.
    """

    def __init__(self, argument: str, value: object, expected: str) -> None:
        super().__init__(argument, value, expected)
        self.args = (f"there is no argument {argument!r}; expected {expected}",)


class UnsupportedError(CuattnError, RuntimeError):
    """The request is valid, but this GPU, this compiler or this build cannot carry it out."""


class NoGPUError(CuattnError, RuntimeError):
    """A GPU is needed and none can be used; the message says why."""


class DistributedError(CuattnError, RuntimeError):
    """Ranks that compute together cannot go on."""


class MismatchError(DistributedError, ValueError):
    """Ranks were called with arguments that do not fit each other; all of them raise it alike."""


class RankTimeoutError(DistributedError, TimeoutError):
    """Another rank has not answered in time: it is dead, or elsewhere in its program."""


class CompileError(CuattnError, RuntimeError):
    """A kernel could not be compiled or loaded.

    Parameters
    ----------
    message : str
        What failed, in one line.
    log : str, optional
        The compiler's own output, kept in the attribute `log` and appended to the message.
    """

    def __init__(self, message: str, log: str = "") -> None:
        self.message = message
        self.log = log
        super().__init__(f"{message}\n{log}" if log else message)

    def __reduce__(self) -> tuple[type[CompileError], tuple[str, str]]:
        return type(self), (self.message, self.log)


def _one_line(value: Any) -> str:
    if hasattr(value, "__dlpack__"):
        # repr of an array on a GPU would copy it to the host and wait for its stream.
        shape, dtype = _shown(lambda: tuple(value.shape)), _shown(lambda: value.dtype)
        return f"{type(value).__name__} of shape {shape} and dtype {dtype}"
    text = " ".join(str(_shown(lambda: repr(value), type(value).__name__)).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _shown(attribute: Callable[[], Any], instead: str = "?") -> Any:
    """Return what cannot always be had: nested tensors raise RuntimeError for their shape."""
    try:
        return attribute()
    except Exception:
        return instead
