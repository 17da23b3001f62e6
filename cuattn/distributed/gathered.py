"""`all_gather_attention`: keys and values of all ranks on each, for masks above all."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from ..attention import attention
from ..common.public import public
from ..errors import MismatchError
from ..operands.scores import ALL_KEYS
from ..scheme import Scheme
from .agreement import Check
from .group import Group
from .parcel import Wire
from .parts import tokens_in
from .placement import Placement
from .ring import shards_of
from .states import States

__all__ = ["all_gather_attention"]


@public
def all_gather_attention(
    q: Any,
    k: Any,
    v: Any,
    group: Group,
    *,
    is_causal: bool = False,
    placement: Placement = "zigzag",
    scheme: str | Scheme = "int8",
    wire: Wire = None,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    attn_mask: Any = None,
    scale: float | None = None,
    layout: str = "HND",
    return_lse: bool = False,
    check: Check = "always",
    timeout: float | None = None,
) -> Any:
    """Attend as `ring_attention` does, with the keys and values of all ranks on each at once.

    They are sent once, all at the same time, and nothing is computed meanwhile. That is as many
    bytes as a ring sends and memory for all of K and V in codes; it allows any mask.

    Parameters
    ----------
    q, k, v, group
        As for `ring_attention`.
    attn_mask : array, optional
        It broadcasts to [batch, num_q_heads, tokens of this rank, keys of all ranks], the keys in
        the order of the whole sequence. Otherwise as for `cuattn.attention`, but no BlockMask.
    is_causal, placement, scheme, wire, window_size, softcap, sinks, scale, layout, return_lse
        As for `ring_attention`.
    check, timeout
        As for `ring_attention`.

    Returns
    -------
    o, lse
        Those of `ring_attention`, bit for bit.

    Raises
    ------
    MismatchError, RankTimeoutError, ArgumentError
        As for `ring_attention`.

    Notes
    -----
    As in the training of Llama 3 (arXiv 2407.21783, section 3.3.2).
    """
    options = {
        "is_causal": is_causal,
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "scale": scale,
        "scheme": scheme,
        "layout": layout,
        "return_lse": return_lse,
    }
    if group.size == 1 and wire != "int4":
        return attention(q, k, v, attn_mask=attn_mask, **options)
    call, tokens, pieces = shards_of(
        "all_gather_attention",
        *(q, k, v, group, check),
        placement=placement,
        wire=wire,
        attn_mask=attn_mask,
        **options,
    )
    rank, size = group.rank, group.size
    total = sum(tokens_in(piece) for of_rank in pieces for piece in of_rank)
    if call.mask_keys not in (None, total):
        raise MismatchError(f"attn_mask must have {total} keys, got {call.mask_keys}")
    with call.on_device(), call.on_stream(q):
        own = call.pack(k, v, pieces[rank])
        sizes = [sum(call.sizes(of_rank)) for of_rank in pieces]
        every = call.xp.empty(sum(sizes), "uint8")
        ends = list(accumulate(sizes))
        parcels = [every[end - n : end] for end, n in zip(ends, sizes, strict=True)]
        if len(set(sizes)) == 1:
            group.all_gather_equal(own, every).wait()
        else:
            group.all_gather(own, parcels).wait()
        states = States(q, int(v.shape[3]), layout)
        for step in range(size):
            source = (rank - step) % size
            call.attend(states, q, tokens[rank], pieces[source], parcels[source], attn_mask)
        o, lse = states.merged(sinks)
        if timeout is not None:
            group.synchronize(timeout)
    return (o, lse) if return_lse else o
