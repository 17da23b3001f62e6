"""Calls on plain tensors of PyTorch that have been made before, on others of the same kinds.

Most calls are such. Nothing is checked or planned here: what `prepare` has found is kept under all
that it depends on, and looked up in two microseconds in place of five.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.caller import Caller
from ..arrays.pytorch import note_write, plain_tensors
from ..operands.block_mask import BlockMask
from ..operands.options import Options
from ..operands.score_arrays import addresses_in_order
from .prepared import AttentionCall

__all__ = ["Repetition", "repetition"]

# Kinds of calls that are kept; they are forgotten together.
_REMEMBERED = 1024

# The addresses of a call that has no arrays among its options.
_NO_SCORES = addresses_in_order({})

_calls: dict[tuple[Any, ...], AttentionCall] = {}


@dataclass(slots=True)
class Repetition:
    """A call on plain tensors.

    Attributes
    ----------
    call : AttentionCall, optional
        What is known of such calls, if one has been made.
    """

    call: AttentionCall | None
    _key: tuple[Any, ...]
    _addresses: list[int]
    _scores: tuple[str, ...]
    _mask_map: int
    _out: Any

    def run(self, call: AttentionCall, caller: Caller) -> tuple[Any, Any]:
        """Launch the call on the caller's stream, and return the output and the log-sum-exp."""
        q, k, v, *others = self._addresses
        out, at_scores = self._out, _NO_SCORES
        if self._scores:
            at_scores = addresses_in_order(dict(zip(self._scores, others, strict=False)))
        with caller:
            if out is not None:
                note_write(out)
                o = others[-1]
            else:
                made = caller.empty(*call.output)
                out, o = made.owner, made.ptr
            lse = None if call.lse is None else caller.empty(*call.lse)
            at_lse = 0 if lse is None else lse.ptr
            # In the order of `GIVEN`: plain tensors have neither scales nor vectors nor an order.
            given = (q, 0, 0, k, 0, 0, v, 0, 0, o, at_lse, 0, 0, 0, *at_scores, self._mask_map)
            call.launches(given, caller.stream)
            return out, None if lse is None else lse.owner

    def remember(self, call: AttentionCall) -> None:
        """Keep what has been found for this call, for which nothing had to be converted first."""
        if call.launches and call.writes_out:
            if len(_calls) >= _REMEMBERED:
                _calls.clear()
            _calls[self._key] = call


def repetition(
    inputs: Iterable[Any], scores: Mapping[str, Any], options: Options, out: Any
) -> Repetition | None:
    """Return a call as one that may have been made before; None if arrays need a closer look.

    Parameters
    ----------
    inputs : iterable of array
        Q, K and V.
    scores : mapping of str to array or BlockMask
        Those among the options of the caller, by their names.
    options : Options
    out : array, optional
        Known only if it is so far from the inputs that it cannot overlap any.
    """
    names, mask, mask_map = tuple(scores), scores.get("attn_mask"), 0
    if isinstance(mask, BlockMask):
        scores = {name: x for name, x in scores.items() if x is not mask}
    if scores:
        inputs = (*inputs, *scores.values())
    tensors = plain_tensors(inputs, out)
    if tensors is None:
        return None
    addresses, kinds = tensors
    if isinstance(mask, BlockMask):
        addresses.insert(3 + names.index("attn_mask"), mask.ptr)
        mask_map = mask.map_ptr
        kinds.append(mask.signature)
    # With their types: 1 must not pass for True because they are equal.
    types = (
        type(options.scale),
        type(options.is_causal),
        type(options.return_lse),
        type(options.softcap),
        type(options.max_seqlen_q),
        type(options.max_seqlen_k),
    )
    key = (*kinds, names, *options, *types)
    try:
        call = _calls.get(key)
    except TypeError:  # what cannot be a key is named by the checks
        return None
    if call is not None and out is not None and not _is_apart(call, addresses, names):
        call = None
    return Repetition(call, key, addresses, names, mask_map, out)


def _is_apart(call: AttentionCall, addresses: list[int], scores: tuple[str, ...]) -> bool:
    """Whether the output spans no byte that is between those of an input."""
    *inputs, out = addresses
    low, high = call.extents["out"]
    begin, end = out + low, out + high
    for address, name in zip(inputs, ("q", "k", "v", *scores), strict=True):
        low, high = call.extents[name]
        if begin < address + high and address + low < end:
            return False
    return True
