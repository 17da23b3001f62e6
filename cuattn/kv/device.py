"""A KV cache on a GPU: its calls, as launches that are remembered by their kind."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import Caller, device_of
from ..arrays.overlap import check_output
from ..arrays.view import CPU, View, as_cupy, contiguous, cupy_module, view_cupy
from ..compile.launch import enqueue
from ..reference.arrays import whole_counts
from .append import prepare_append
from .attend import prepare_attend
from .device_memory import DeviceMemory
from .geometry import KVGeometry
from .operands import QueryOptions

__all__ = ["DeviceStore"]

# Kinds of calls, of each method, that a cache remembers, at a few kilobytes each.
_REMEMBERED = 256


class DeviceStore(DeviceMemory):
    """The memory of a cache and the calls on it; see `Store`."""

    def __init__(self, geometry: KVGeometry, smooth_k: bool) -> None:
        super().__init__(geometry, smooth_k)
        # typed: 1 must not pass for True because they are equal.
        remember = lru_cache(_REMEMBERED, typed=True)
        self._prepare_attend = remember(partial(prepare_attend, geometry))
        self._prepare_append = remember(partial(prepare_append, geometry))

    def append(self, k: Any, v: Any, counts: Any, layout: str, stream: Any) -> None:
        """Do what `KVCache.append` says."""
        self.check_device(k, "k", device_of(k, "k"))
        with self.on_device():
            caller = Caller(k, stream)
            k_view, v_view = self.look(caller, k, "k"), self.look(caller, v, "v")
            with caller:
                k_view, v_view = _direct(k_view), _direct(v_view)
                tokens = k_view.signature, v_view.signature
                call = _remembered(self._prepare_append, *tokens, layout, False)
                fresh = self._fresh(caller, counts, call.tokens)
                plan = None
                if self.book.is_known and not isinstance(fresh, View) and not self.is_captured():
                    plan = self.book.plan(call.tokens if fresh is None else fresh, k_view.shape)
                counts_view = self._sent_counts(fresh, call.tokens)
                begins = self.book.may_begin if plan is None else plan.begins
                if begins and self.k_offset is not None:
                    call = self._prepare_append(*tokens, layout, True)
                if plan is not None and plan.lacks_pages:
                    self.enter(self.book.give_pages(plan.after))
                given = (
                    *self.append_addresses,
                    self.counters(1),
                    self.refused_address,
                    k_view.ptr,
                    v_view.ptr,
                    0 if counts_view is None else counts_view.ptr,
                )
                enqueue(call.launches, call.buffers, given)
                if plan is None:
                    self.book.forget(replayed=self.is_captured())
                else:
                    self.book.learn(plan.after)

    def attend(self, q: Any, options: QueryOptions, out: Any, stream: Any) -> Any:
        """Do what `KVCache.attend` says."""
        self.check_device(q, "q", device_of(q, "q"))
        with self.on_device():
            caller = Caller(q, stream)
            q_view = self.look(caller, q, "q")
            target = None if out is None else self.look(caller, out, "out")
            with caller:
                q_view = _direct(q_view)
                of_out = None if target is None else target.signature
                call = _remembered(self._prepare_attend, q_view.signature, of_out, *options)
                of_q, return_lse = call.problem.q, call.problem.return_lse
                if target is not None:
                    check_output(out, target, {"q": q_view}, call.extents, of_q.dtype.nbytes)
                o, o_view = out, target
                if o_view is None:
                    o, o_view = caller.empty(q_view.shape, q_view.dtype)
                lse = lse_view = None
                if return_lse:
                    lse, lse_view = caller.empty(of_q.shape[:3], "float32")
                written = o_view
                if not call.writes_out:
                    written = view_cupy(cupy_module().empty_like(as_cupy(o_view), order="C"))
                given = (
                    *self.attend_addresses,
                    self.counters(call.arrivals),
                    q_view.ptr,
                    written.ptr,
                    0 if lse_view is None else lse_view.ptr,
                )
                enqueue(call.launches, call.buffers, given)
                if written is not o_view:
                    as_cupy(o_view)[...] = written.owner
                result = o if out is not None else caller.deliver(o)
                return (result, caller.deliver(lse)) if return_lse else result

    def _fresh(self, caller: Caller, counts: Any, tokens: int) -> View | NDArray[np.int64] | None:
        """Return how many tokens of each sequence there are: on the GPU, on the host, or all."""
        if counts is None:
            return None
        of_host = not hasattr(counts, "__dlpack_device__") or device_of(counts, "counts")[0] == CPU
        if of_host:
            return whole_counts("counts", counts, self.geometry.batch, tokens)
        return self.look_at_integers(caller, counts, "counts")

    def _sent_counts(self, fresh: View | NDArray[np.int64] | None, tokens: int) -> View | None:
        """Return the counts as the kernels read them, None if all tokens are meant."""
        if isinstance(fresh, View):
            if fresh.dtype == "int32" and fresh.strides == (1,):
                return fresh
            return view_cupy(as_cupy(fresh).astype(np.int32, order="C"))
        if fresh is None or (fresh == tokens).all():
            return None
        return view_cupy(self.sent(fresh.astype(np.int32)))


def _direct(x: View) -> View:
    """Return an array whose last axis is contiguous: a copy, unless it is already."""
    return x if x.strides[-1:] in ((), (1,)) else contiguous(x)


def _remembered(prepare: Any, *key: Any) -> Any:
    try:
        return prepare(*key)
    except TypeError:
        prepare.__wrapped__(*key)  # says which argument cannot be a key
        raise
