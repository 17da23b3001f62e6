"""A KV cache in host memory: the units of the kernels, the arithmetic of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.caller import device_of
from ..arrays.host import heads_first, look_on_host, to_host
from ..arrays.view import CPU, Array
from ..common.sizes import ceil_div
from ..emulation.attention import delivered, output_on_host
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from ..reference.arrays import whole_counts
from ..reference.decode import decode
from ..reference.kv_cache import offsets, quantize_keys, quantize_values
from .geometry import KVGeometry
from .operands import QueryOptions, query_problem, token_operands
from .read import cached_operands
from .store import Store
from .units import pack_units, unpack_units

__all__ = ["HostStore"]


class HostStore(Store):
    """The memory as arrays of NumPy; see `Store`."""

    def __init__(self, geometry: KVGeometry, smooth_k: bool) -> None:
        super().__init__(geometry, smooth_k, np)

    def wait(self) -> None:
        """Return: in host memory everything is done at once."""

    def forget_refusal(self) -> None:
        """Return: appends are refused by an exception only."""

    def append(self, k: Any, v: Any, counts: Any, layout: str, stream: Any) -> None:
        """Do what `KVCache.append` says."""
        with self.call_on(stream):
            of_k, of_v = _signature(k, "k"), _signature(v, "v")
            token_operands(self.geometry, of_k, of_v, layout)
            keys, values = (
                heads_first(to_host(x, name).values, layout) for name, x in (("k", k), ("v", v))
            )
            if counts is not None and hasattr(counts, "__dlpack_device__"):
                _check_device(counts, "counts")
            fresh = whole_counts("counts", counts, self.geometry.batch, keys.shape[2])
            plan = self.book.plan(fresh, of_k.shape)
            if plan.lacks_pages:
                self.enter(self.book.give_pages(plan.after))
            if self.k_offset is not None and plan.begins:
                begins = (self.lengths == 0) & (fresh > 0)
                self.k_offset[begins] = offsets(keys[begins], fresh[begins])
            self._write_tokens(keys, values, fresh)
            self.set_lengths(plan.after)
            self.book.learn(plan.after)

    def _write_tokens(
        self, keys: NDArray[Any], values: NDArray[Any], counts: NDArray[np.int64]
    ) -> None:
        """Quantize the first tokens of each sequence and put them after those that there are."""
        kv_format = self.geometry.kv_format
        k_codes = quantize_keys(keys, kv_format, self.k_offset)
        v_codes = quantize_values(values, kv_format)
        for b in np.flatnonzero(counts).tolist():
            length, count = int(self.lengths[b]), int(counts[b])
            first, last = length // UNIT_TOKENS, ceil_div(length + count, UNIT_TOKENS)
            units = unpack_units(self.read(b, first, last), kv_format)
            at = slice(length - first * UNIT_TOKENS, length - first * UNIT_TOKENS + count)
            for there, fresh in zip(units, (k_codes, v_codes), strict=True):
                there.codes[0, :, at] = fresh.codes[b, :, :count]
                there.scale[0, :, at] = fresh.scale[b, :, :count]
                if fresh.zero is not None:
                    there.zero[0, :, at] = fresh.zero[b, :, :count]
            self.write(b, first, pack_units(*units, kv_format))

    def attend(self, q: Any, options: QueryOptions, out: Any, stream: Any) -> Any:
        """Do what `KVCache.attend` says."""
        with self.call_on(stream):
            problem = query_problem(self.geometry, _signature(q, "q"), options)
            target = None if out is None else output_on_host(out, problem, {"q": q})
            o, lse = decode(
                heads_first(to_host(q, "q").values, problem.layout),
                *cached_operands(self, self.book.lengths),
                self.book.lengths,
                scale=problem.softmax_scale,
                is_causal=problem.is_causal,
            )
            result, of_lse = delivered(o, lse, problem, q, out, target)
            return (result, of_lse) if problem.return_lse else result


def _check_device(x: Any, name: str) -> None:
    if device_of(x, name)[0] != CPU:
        raise ArgumentError(name, x, "in host memory, as the cache is")


def _signature(x: Any, name: str) -> Array:
    _check_device(x, name)
    return look_on_host(x, name).signature
