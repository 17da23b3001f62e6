"""Other libraries' functions of attention, replaced in all modules that have them, and put back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from ..errors import ArgumentError
from .calls import count_fallback, counting
from .flash import flash_attn_func, flash_attn_varlen_func
from .flash_kvcache import flash_attn_with_kvcache
from .refusals import refusal_of_tensors
from .sage import sageattn
from .sdpa import answer

__all__ = ["Use", "everywhere", "here", "install", "uninstall"]

Function = Callable[..., Any]


class Use(NamedTuple):
    """What is done with calls of attention in some place.

    Attributes
    ----------
    scheme : callable
        Returns the text of the scheme, or None where calls are left as they are.
    reason : str
        Why they are, if they are.
    fallback : bool
    backward : str or None
    number : int
        Of the counter.
    """

    scheme: Callable[[], str | None]
    reason: str
    fallback: bool
    backward: str | None
    number: int


class _Here(threading.local):
    """What is done in the layer that this thread is in, None outside of all."""

    use: Use | None = None


here = _Here()

# What is done outside of layers, in all threads; the last one counts.
everywhere: list[Use] = []


def _current() -> Use | None:
    if here.use is not None:
        return here.use
    return everywhere[-1] if everywhere else None


def _replaced_sdpa(original: Function) -> Function:
    @wraps(original)
    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        use = _current()
        scheme = None if use is None else use.scheme()
        if use is None or scheme is None:
            if use is not None:
                count_fallback(use.number, use.reason)
            return original(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
        options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        how = (scheme, use.fallback, use.backward, use.number)
        return answer(original, (query, key, value), options, how)

    return scaled_dot_product_attention


def _replaced_by(ours: Function, names: tuple[str, str, str]) -> Callable[[Function], Function]:
    """Return what makes of a function one that ours answers, whose tensors have these names."""

    def replaced(original: Function) -> Function:
        @wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            use = _current()
            scheme = None if use is None else use.scheme()
            if use is None or scheme is None:
                if use is not None:
                    count_fallback(use.number, use.reason)
                return original(*args, **kwargs)
            before, counting.number = counting.number, use.number
            try:
                given = (*args[:3], *(kwargs[name] for name in names[len(args) :]))
                against = refusal_of_tensors(*given, backward=use.backward)
                if against is None:
                    return ours(*args, **kwargs, scheme=scheme, **_backward(ours, use.backward))
                if not use.fallback:
                    raise against.error()
                reason = against.reason
            except ArgumentError as error:
                if not use.fallback:
                    raise
                reason = "dropout" if error.argument == "dropout_p" else error.argument
            finally:
                counting.number = before
            count_fallback(use.number, reason)
            return original(*args, **kwargs)

        return function

    return replaced


def _backward(ours: Function, backward: str | None) -> dict[str, Any]:
    return {"backward": backward} if ours in _DIFFERENTIABLE else {}


_DIFFERENTIABLE = (flash_attn_func, sageattn)

# By module and name: those of flash_attn 2 and of sageattention 1 and 2.
_KNOWN: dict[tuple[str, str], Callable[[Function], Function]] = {
    ("torch.nn.functional", "scaled_dot_product_attention"): _replaced_sdpa,
    ("flash_attn", "flash_attn_func"): _replaced_by(flash_attn_func, ("q", "k", "v")),
    ("flash_attn", "flash_attn_varlen_func"): _replaced_by(flash_attn_varlen_func, ("q", "k", "v")),
    ("flash_attn", "flash_attn_with_kvcache"): _replaced_by(
        flash_attn_with_kvcache, ("q", "k_cache", "v_cache")
    ),
    ("sageattention", "sageattn"): _replaced_by(sageattn, ("q", "k", "v")),
}


class _Change(NamedTuple):
    namespace: dict[str, Any]
    name: str
    original: Function
    replaced: Function


_lock = threading.Lock()
_changes: list[_Change] = []
_users = 0


def install() -> None:
    """Put ours into all modules that are imported now and have one of the known functions.

    A name that a module has imported is found too; one in a closure, a class or a container is not.
    """
    global _users
    with _lock:
        _users += 1
        made: dict[int, tuple[Function, Function]] = {}
        for (module, name), replaced in _KNOWN.items():
            original = getattr(sys.modules.get(module), name, None)
            if original is not None and not hasattr(original, "_is_cuattns"):
                function: Any = replaced(original)
                function._is_cuattns = True
                made[id(original)] = original, function
        if made:
            _changes.extend(_changed(made))


def uninstall() -> None:
    """Put the functions of before back, if nobody else wants ours."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for namespace, name, original, replaced in _changes:
            if namespace.get(name) is replaced:
                namespace[name] = original
        _changes.clear()


def _changed(made: dict[int, tuple[Function, Function]]) -> list[_Change]:
    changes = []
    for module_name, module in list(sys.modules.items()):
        # PyTorch's own modules know its functions by identity.
        top = module_name.partition(".")[0]
        if top in ("torch", "cuattn") and module_name != "torch.nn.functional":
            continue
        namespace = getattr(module, "__dict__", None)
        if not isinstance(namespace, dict):
            continue
        for name, value in list(namespace.items()):
            found = made.get(id(value))
            if found is not None and found[0] is value:
                namespace[name] = found[1]
                changes.append(_Change(namespace, name, *found))
    return changes
