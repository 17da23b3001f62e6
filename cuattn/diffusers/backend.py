"""Backends for `diffusers.models.attention_dispatch`.

The dispatcher calls a backend with Q, K and V [batch, token, head, channel] and those of its other
arguments that the backend has by name. In context parallelism it calls it for parts of the keys and
merges the results by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers.models import attention_dispatch as dispatch
from torch.nn import functional

from ..common.public import naming_keywords
from ..errors import ArgumentError, UnsupportedError
from ..presets import resolve
from ..scheme import Scheme
from ..torch.attention import cast
from ..torch.calls import calls
from ..torch.constants import scheme_text
from ..torch.operator import ALL_KEYS, apply
from ..torch.patches import here
from ..torch.sdpa import answer

__all__ = ["OF_LAYER", "backend_named", "register"]

# The backend whose scheme is that of the layer that calls it.
OF_LAYER = "cuattn"

_DEFAULT = "int8"

_registered: dict[str, tuple[str | Scheme | None, bool]] = {}

# Before `cuattn.torch.replace` may put another function in its place.
_pytorchs: Callable[..., Any] = functional.scaled_dot_product_attention


@naming_keywords
def register(
    scheme: str | Scheme = _DEFAULT, *, name: str | None = None, fallback: bool = True
) -> str:
    """Make a scheme known to diffusers as a backend of attention, and return its name there.

    It is for models whose layers ask the dispatcher, such as Flux and Wan; others take no notice of
    ``set_attention_backend``, and `cuattn.diffusers.attach` reaches them too.

    Parameters
    ----------
    scheme : str or Scheme
        As for `cuattn.attention`.
    name : str, optional
        In small letters; by default ``"cuattn-" + name of the scheme``.
    fallback : bool
        Let PyTorch answer what cuattn cannot, such as dropout and gradients; `cuattn.torch.calls`
        counts both. Never in context parallelism, nor where a log-sum-exp is asked for.

    Returns
    -------
    str
        For ``model.set_attention_backend(name)`` or ``with attention_backend(name)``.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the name is taken by another backend.
    UnsupportedError
        If this version of diffusers has another dispatcher.
    """
    resolve(scheme)
    named = scheme if isinstance(scheme, str) else scheme.name
    name = f"{OF_LAYER}-{named.lower()}" if name is None else name
    if not isinstance(name, str) or name != name.lower() or not name:
        raise ArgumentError("name", name, "in small letters, as diffusers makes them small")
    _make(name, scheme, fallback)
    return name


def backend_named(name: str) -> Any:
    """Return diffusers' own name of a backend, which `OF_LAYER` has without being registered."""
    if name == OF_LAYER:
        _make(name, None, True)
    return dispatch.AttentionBackendName(name)


def _make(name: str, scheme: str | Scheme | None, fallback: bool) -> None:
    names, registry = dispatch.AttentionBackendName, dispatch._AttentionBackendRegistry
    what = (scheme, fallback)
    if name in names._value2member_map_:
        if _registered.get(name) != what:
            raise ArgumentError("name", name, "one that no other backend has")
        return
    text = None if scheme is None else scheme_text(scheme)

    def backend(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        window_size: tuple[int, int] = ALL_KEYS,
        return_lse: bool = False,
        _parallel_config: Any = None,
    ) -> Any:
        options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _attend(
            (query, key, value),
            options,
            (text, fallback),
            window_size,
            return_lse,
            _parallel_config,
        )

    try:
        registry.register(_new_member(names, name), supports_context_parallel=True)(backend)
    except (AttributeError, TypeError) as error:
        raise UnsupportedError(
            f"this version of diffusers registers backends of attention otherwise ({error}); "
            "cuattn.torch.replace(model) does not need it"
        ) from None
    _registered[name] = what


def _new_member(names: Any, value: str) -> Any:
    """Add a member to the enumeration of backends, in which diffusers looks names up."""
    member = str.__new__(names, value)
    member._name_ = value.upper().replace("-", "_")
    member._value_ = value
    names._member_names_.append(member._name_)
    names._member_map_[member._name_] = member
    names._value2member_map_[value] = member
    return member


def _attend(
    tensors: tuple[Any, Any, Any],
    options: tuple[Any, float, bool, float | None, bool],
    how: tuple[str | None, bool],
    window_size: tuple[int, int],
    return_lse: bool,
    parallel: Any,
) -> Any:
    scheme, fallback = how
    backward, number = None, calls.number
    if (use := here.use) is not None:
        number = use.number
        if scheme is None:
            scheme, fallback, backward = use.scheme(), use.fallback, use.backward
            if scheme is None:  # PyTorch's function, as `replace` has it, counts the call
                native = dispatch._AttentionBackendRegistry._backends["native"]
                return native(*tensors, *options, return_lse, parallel)
    scheme = scheme or _DEFAULT
    if parallel is not None:
        return dispatch._templated_context_parallel_attention(
            *tensors,
            *options,
            return_lse,
            forward_op=partial(_forward, scheme, number, window_size),
            backward_op=_no_backward,
            _parallel_config=parallel,
        )
    if return_lse or tuple(window_size) != ALL_KEYS:
        return _exactly(scheme, number, window_size, tensors, options, return_lse)
    mask, *others = options
    q, k, v = (x.transpose(1, 2) for x in tensors)
    o = answer(
        _pytorchs,
        (q, k, v),
        (_of_four_axes(mask, *tensors[:2]), *others),
        (scheme, fallback, backward, number),
    )
    return o.transpose(1, 2)


def _forward(
    scheme: str,
    number: int,
    window_size: tuple[int, int],
    context: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _save_ctx: bool = True,
    _parallel_config: Any = None,
) -> Any:
    """Attend to a part of the keys, or with a part of the heads, in context parallelism."""
    ring = _parallel_config.context_parallel_config.ring_degree > 1
    if ring and (attn_mask is not None or tuple(window_size) != ALL_KEYS):
        name = "window_size" if attn_mask is None else "attn_mask"
        given = window_size if attn_mask is None else attn_mask
        raise ArgumentError(name, given, "not given where keys go around in a ring")
    options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
    found = _exactly(scheme, number, window_size, (query, key, value), options, return_lse)
    if not return_lse:
        return found
    o, lse = found
    return o, lse.transpose(1, 2)


def _no_backward(*args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError("cuattn has no gradients in context parallelism")


def _exactly(
    scheme: str,
    number: int,
    window_size: tuple[int, int],
    tensors: tuple[Any, Any, Any],
    options: tuple[Any, float, bool, float | None, bool],
    return_lse: bool,
) -> Any:
    """Attend with what PyTorch's function lacks, so that it cannot answer instead."""
    mask, dropout_p, is_causal, scale, _ = options
    left, right = window_size
    if dropout_p:
        raise ArgumentError("dropout_p", dropout_p, "0, as cuattn has no dropout")
    q, k, v, mask = cast(*tensors, _of_four_axes(mask, *tensors[:2]))
    return apply(
        q,
        k,
        v,
        mask,
        is_causal=is_causal,
        window_size=(left, right),
        scale=scale,
        scheme=scheme,
        layout="NHD",
        number=number,
        return_lse=return_lse,
    )


def _of_four_axes(mask: Any, query: Any, key: Any) -> Any:
    """Return a mask [batch, token] of keys as one that broadcasts, as diffusers' backends do."""
    if mask is not None and mask.ndim == 2 and mask.shape == (query.shape[0], key.shape[1]):
        return mask[:, None, None]
    return mask
