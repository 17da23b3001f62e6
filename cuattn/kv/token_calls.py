"""The calls of a KV cache that take arrays of tokens: `append` and `attend`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from ..common.public import class_naming_keywords, public
from ..errors import ArgumentError
from ..operands.mods import Mods
from ..operands.score_mod import MaskMod, ScoreMod, mod_of, mods_of
from ..operands.scores import ALL_KEYS, checked_window
from ..plan.repeated import result_of
from .append import append_on_device
from .attend import attend_on_device
from .device import DeviceMemory
from .holdings import Holdings
from .host import append_on_host, attend_on_host
from .packed_tokens import GivenTokens
from .query import QueryOptions
from .rope import GivenRope, Rope

__all__ = ["TokenCalls"]

P = ParamSpec("P")


def _repeating(attend: Callable[Concatenate[TokenCalls, P], Any]) -> Callable[..., Any]:
    """Return a method whose calls are remembered by a cache on a GPU."""
    names = [*inspect.signature(attend).parameters][1:]

    @wraps(attend)
    def called(self: TokenCalls, *args: P.args, **kwargs: P.kwargs) -> Any:
        memory = getattr(self, "_memory", None)
        if not isinstance(memory, DeviceMemory) or memory.undo:
            return result_of(attend(self, *args, **kwargs))
        is_whole = memory.host_state.evicted is None
        return memory.repetitions.call(attend, names, args, kwargs, (self,), is_whole)

    return called


@class_naming_keywords
class TokenCalls(Holdings):
    """What a `KVCache` does with new tokens and with queries."""

    @public
    def append(
        self,
        k: Any,
        v: Any,
        *,
        counts: Any = None,
        cu_seqlens_k: Any = None,
        sequences: Any = None,
        rope: Rope | None = None,
        positions: Any = None,
        layout: str = "HND",
        stream: Any = None,
    ) -> None:
        """Quantize tokens and put them after those that there are.

        Parameters
        ----------
        k, v : array [batch, num_kv_heads, n, head_dim]
            With layout "NHD" tokens come before heads. float16, bfloat16 or float32, where the
            cache is, of any library; copied first if the last axis is not contiguous.
        counts : array_like of int [batch], optional
            How many of the n tokens of each sequence there are; by default all. Counts on the host
            are checked there, and cannot be captured into a graph; those on the GPU are checked by
            it.
        cu_seqlens_k : array_like of int [parts + 1], optional
            Tokens of several sequences lie end to end, those of part i from ``cu_seqlens_k[i]`` to
            ``cu_seqlens_k[i + 1]``: `k` and `v` are [total, num_kv_heads, head_dim], whatever the
            layout, and are read where they are. Parts may be empty, and rows beyond them are not
            read. On the host or on the GPU, as `counts`, which is refused then.
        sequences : array_like of int [parts], optional
            With `cu_seqlens_k`, which sequences of the cache the parts are of, in any order, each
            once; others get nothing. In host memory, and so not for a graph. By default there is a
            part of each.
        rope : Rope, optional
            Turn keys by their positions first, in float32; `k` is what it was before that. It costs
            no copy of `k`.
        positions : array_like of int [batch, n], or [total] with `cu_seqlens_k`, optional
            With `rope`, where each token is; by default that is its place in its sequence, from 0
            on, which tokens keep that come after evicted ones. Those on the host are checked there,
            and cannot be captured into a graph; on the GPU, int32 or int64, a key at a position
            that the tables have not is NaN.
        layout : {"HND", "NHD"}
        stream : int or stream, optional
            As for `cuattn.attention`.

        Raises
        ------
        ArgumentError
            If an argument is wrong, or a sequence or the free pages lack room. Nothing has changed.
        UnsupportedError, CompileError
            As for `cuattn.attention`.
        """
        turns = GivenRope.of(rope, positions)
        given = GivenTokens(counts, cu_seqlens_k, sequences)
        if isinstance(self._memory, DeviceMemory):
            append_on_device(self._memory, k, v, given, layout, stream, turns)
        else:
            append_on_host(self._memory, k, v, given, layout, stream, turns)

    @public
    @_repeating
    def attend(
        self,
        q: Any,
        *,
        is_causal: bool = True,
        window_size: tuple[int, int] = ALL_KEYS,
        softcap: float = 0.0,
        sinks: Any = None,
        attn_mask: Any = None,
        alibi_slopes: Any = None,
        score_mod: str | ScoreMod | None = None,
        mask_mod: str | MaskMod | None = None,
        scale: float | None = None,
        layout: str = "HND",
        return_lse: bool = False,
        cu_seqlens_q: Any = None,
        max_seqlen_q: int | None = None,
        batch_invariant: bool = False,
        rope: Rope | None = None,
        positions: Any = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Attend to the tokens of each sequence; Q is quantized to 8 bits on the way.

        Query i of n stands beside token ``length - n + i``, its own: the last query beside the last
        token. Options that change the logits may be combined. They do it in this order: `softcap`,
        `alibi_slopes`, an `attn_mask` of floats, `score_mod`; then tokens are hidden, by all that
        hides some, and `sinks` take part in the softmax.

        Parameters
        ----------
        q : array [batch, num_q_heads, n, head_dim]
            `num_q_heads` is a multiple of `num_kv_heads`. Otherwise as `k` of `append`.
        is_causal : bool
            Hide the tokens behind a query's own: query i of n sees the first ``length - n + 1 + i``
            tokens, the last one sees all.
        window_size : (int, int)
            How many tokens before and behind its own a query sees, left and right; -1 for all. So
            ``(W - 1, 0)`` are W tokens, which Hugging Face calls a sliding window of W. Tokens that
            no query of a sequence sees are not read: time goes with the window and n.
        softcap : float
            Make a logit s ``softcap * tanh(s / softcap)``, as in Gemma 2; 0 does not.
        sinks : array [num_q_heads], optional
            A logit of each query head that takes part in the softmax and has no value, as in
            gpt-oss: natural, neither scaled nor capped. float16, bfloat16 or float32, whatever `q`
            is; -inf is no sink.
        attn_mask : array, optional
            It broadcasts to [batch, num_q_heads, n, m], whatever the layout, of the last m tokens
            of each sequence, whatever its length: its last column is the last token's. All tokens
            before those are seen, and columns of tokens that are not there mean nothing; m is at
            most the capacity. So a tree of drafts is [batch, 1, n, n]. Of bool, True is seen. Of
            float16, bfloat16 or float32 it is added to the logits, natural; -inf and the least
            number of its type hide the token. It is read through its strides, never expanded.
        alibi_slopes : array [num_q_heads] or [batch, num_q_heads], optional
            The slope times a token's distance from the query's own is taken from its logit.
            float16, bfloat16 or float32.
        score_mod : str or ScoreMod, optional
            An expression in CUDA C++ that a logit becomes; see `cuattn.ScoreMod`. `q` is a query's
            number among the n of its sequence in this call, `kv` a token's among those that the
            sequence has, and `own` that of the query's own token, ``length - n + q``. So `own` and
            `kv` are places in the sequence, whatever queries the call has. Where first tokens were
            evicted they count those that are left; ``positions - lengths`` is what is missing.
        mask_mod : str or MaskMod, optional
            One that says whether a query sees a token; see `cuattn.MaskMod`. All tokens are read
            that `is_causal` and `window_size` leave.
        scale : float, optional
            Factor of the logits, ``1/sqrt(head_dim)`` by default.
        layout : {"HND", "NHD"}
        return_lse : bool
            Return the log-sum-exp of the logits too.
        cu_seqlens_q : array of int32 [batch + 1], optional
            Queries of all sequences lie end to end, those of number b from ``cu_seqlens_q[b]`` to
            ``cu_seqlens_q[b + 1]``: `q` is [total_q, num_q_heads, head_dim], whatever the layout,
            and so is `out`. As for `cuattn.attention`; `attn_mask` is refused.
        max_seqlen_q : int, optional
            With it, what no sequence has more queries than: total_q by default. Of more the rest is
            left out.
        batch_invariant : bool
            Let a sequence have the same bits alone and in any batch, with the same heads, number of
            queries and kind of GPU: sums are taken in parts that depend on its own length only, at
            least 1024 tokens each. A call keeps more memory for them: a float32 row of O for each
            query and part of the longest sequence that there is room for.
        rope : Rope, optional
            Turn queries by their positions first, in float32; `q` is what it was before that.
        positions : array_like of int [batch, n], optional
            With `rope`, where each query is, as for `append`; by default where the token is that it
            stands beside. Queries before the first token, which have none, are turned as it is.
            With `cu_seqlens_q` they are [total_q].
        out : array, optional
            As for `cuattn.attention`.
        stream : int or stream, optional
            As for `cuattn.attention`.

        Returns
        -------
        o : array with the shape and type of `q`
            As for `cuattn.attention`. A row that sees no token is 0.
        lse : array of float32 [batch, num_q_heads, n]
            Only with `return_lse`; with `cu_seqlens_q` [num_q_heads, total_q]. It includes the
            sink, and is the sink, or -inf without one, of a row that sees no token.

        Raises
        ------
        ArgumentError, UnsupportedError, CompileError
            As for `cuattn.attention`.

        Notes
        -----
        Few queries are decoded: the cache is read once for every 32 rows, which are queries times
        the query heads that share a head of K and V. From 1024 rows of a sequence on, and always
        with `cu_seqlens_q`, the call is one of `cuattn.attention`: what the cache has becomes
        operands of the scheme "int8", in a workspace of 256 MiB at most, or of the codes of one
        head of a sequence if these are more. A longer cache takes several rounds. The workspace is
        for the longest sequence that there is; in a graph, or where only the GPU knows the lengths,
        for the capacity. It is larger by codes of Q, if there are a `rope` or padded heads, and by
        what is made of an `attn_mask`, of booleans a bit for each query and token.

        What an option is decides which kernel is used, not what is in an array: in a graph lengths,
        sinks, slopes, masks and arrays of expressions may change from one replay to the next.
        """
        arrays = {"sinks": sinks, "alibi_slopes": alibi_slopes, "attn_mask": attn_mask}
        scores: dict[str, Any] = {name: x for name, x in arrays.items() if x is not None}
        mods: Mods | None = None
        functions: tuple[ScoreMod | None, MaskMod | None] = (None, None)
        if score_mod is not None or mask_mod is not None:
            functions = mod_of(ScoreMod, score_mod), mod_of(MaskMod, mask_mod)
            mods, arrays_of_mods = mods_of(*functions)
            scores |= arrays_of_mods
            self._memory.host_state.check_distances(mods.given[0].name)
        window = window_size if window_size is ALL_KEYS else checked_window(window_size)
        if window[0] >= 0 or alibi_slopes is not None:
            self._memory.host_state.check_distances(
                "alibi_slopes" if window[0] < 0 else "window_size"
            )
        if not isinstance(batch_invariant, bool):
            raise ArgumentError("batch_invariant", batch_invariant, "True or False")
        options = QueryOptions(
            scale, is_causal, return_lse, layout, window, softcap, batch_invariant, mods
        )
        given = GivenRope.of(rope, positions)
        memory, lengths = self._memory, (cu_seqlens_q, max_seqlen_q)
        if isinstance(memory, DeviceMemory):
            return attend_on_device(memory, q, options, scores, out, stream, *lengths, given)
        return attend_on_host(memory, q, options, scores, out, stream, *lengths, given, functions)
