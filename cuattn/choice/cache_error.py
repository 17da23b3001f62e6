"""How wrong a `KVCache` is on given tokens, and by how old they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import heads_first, to_host
from ..common.public import class_naming_keywords
from ..errors import ArgumentError
from ..kv.cache import KVCache
from ..kv.fine import fine_tokens
from ..kv_format import UNIT_TOKENS, KVFormat
from ..reference import exact
from ..reference.arrays import FloatArray, Shape
from ..reference.metrics import metrics, relative_l2
from .error_report import Backend
from .progress import Stages

__all__ = ["AgeErrors", "CacheErrorReport", "check_options", "measure_cache", "runs_of_ages"]

# Of `KVCache`: these follow from the arrays.
_FROM_ARRAYS = ("self", "batch", "num_kv_heads", "head_dim", "capacity", "device")
OPTIONS = [x for x in inspect.signature(KVCache.__init__).parameters if x not in _FROM_ARRAYS]

# The youngest tokens that are looked at by themselves, and how much longer each run is.
FIRST_RUN, GROWTH = 16, 4


@dataclass(frozen=True)
class AgeErrors:
    """Relative L2 errors of tokens of like age, of which the newest has age 1.

    Attributes
    ----------
    ages : range
    k_bits, v_bits : int
        Of their codes.
    k, v : float
        Of keys and values, as `KVCache.gather` returns them.
    output : float
        Of attention in float64 if only these tokens are the cache's and all others exact.
    """

    ages: range
    k_bits: int
    v_bits: int
    k: float
    v: float
    output: float


@class_naming_keywords
@dataclass(frozen=True)
class CacheErrorReport:
    """Distance of `KVCache.attend` from attention in float64; `str` shows it as a table.

    Attributes
    ----------
    format : KVFormat
        What the numbers of the cache mean.
    shape : Shape
        Sizes: batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_kv, head_dim.
    is_causal : bool
    backend : {"gpu", "emulation"}
        Where cache and output came from: this computer's GPU, or NumPy.
    nbytes : int
        Bytes of the cache, which has room for these tokens and no more.
    metrics : dict of str to float
        Of the output, as from `cuattn.reference.metrics.metrics`. Queries in 8 bits and the
        rounding of P are in these, and in none of `by_age`.
    by_age : tuple of AgeErrors
        From the newest tokens to the oldest.
    """

    format: KVFormat
    shape: Shape
    is_causal: bool
    backend: Backend
    nbytes: int
    metrics: dict[str, float]
    by_age: tuple[AgeErrors, ...]

    @property
    def bits_per_element(self) -> float:
        """Bits of the cache for each element of K and V, with all that codes need besides."""
        s = self.shape
        return 8 * self.nbytes / (2 * s.batch * s.num_kv_heads * s.seqlen_kv * s.head_dim)

    def __str__(self) -> str:
        s = self.shape
        where = "on the GPU" if self.backend == "gpu" else "emulated in NumPy"
        lines = [
            f"cache {where}: {self.bits_per_element:.2f} bits an element, batch {s.batch}, heads "
            f"{s.num_q_heads} over {s.num_kv_heads}, tokens {s.seqlen_q} over {s.seqlen_kv}, "
            f"head_dim {s.head_dim}" + (", causal" if self.is_causal else ""),
            *(f"{name:13}{x:12.5g}" for name, x in self.metrics.items()),
            "",
            f"{'tokens of age':16}{'bits':>8}{'K':>12}{'V':>12}{'output':>12}  (relative L2)",
        ]
        for x in self.by_age:
            ages = f"{x.ages.start} to {x.ages.stop - 1}"
            bits = f"{x.k_bits}/{x.v_bits}"
            lines.append(f"{ages:16}{bits:>8}{x.k:12.5g}{x.v:12.5g}{x.output:12.5g}")
        return "\n".join(lines)


def check_options(cache: object) -> None:
    """Check what `measure_error` is given for `cache`, but for the values of the options.

    Raises
    ------
    ArgumentError
        If it is no mapping of options of `KVCache`, or one is that of its sizes or its device.
    """
    if not isinstance(cache, Mapping):
        expected = 'a mapping of options of KVCache, such as {"bits": 4}, or None'
        raise ArgumentError("cache", cache, expected)
    if unknown := [name for name in cache if name not in OPTIONS]:
        raise ArgumentError("cache", unknown, f"options of KVCache: some of {OPTIONS}")


def measure_cache(
    given: Mapping[str, Any],
    arrays: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    on_gpu: bool,
    scale: float | None,
    is_causal: bool,
    layout: str,
    reference: FloatArray | None,
    stages: Callable[[int], Stages],
) -> CacheErrorReport:
    """Do what `measure_error` says of caches.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to ndarray
        Values on the host, heads before tokens.
    arrays : mapping of {"q", "k", "v"} to array
        What the cache takes, in the layout.
    options : mapping of str to object
        Those that `check_options` lets pass.
    on_gpu : bool
    scale, is_causal, layout, reference
        As for `measure_error`.
    stages : callable
        Called with the number of runs that are to come.

    Raises
    ------
    ArgumentError
        If an option is wrong.
    """
    q, k, v = (given[name] for name in "qkv")
    shape = Shape.of(q.shape, k.shape, v.shape)
    if v.shape[3] != shape.head_dim or not shape.seqlen_kv:
        raise ArgumentError("v.shape", v.shape, f"the shape {k.shape} of k, with a token or more")
    sizes = {
        "batch": shape.batch,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "capacity": shape.seqlen_kv,
        "device": None if on_gpu else "cpu",
    }
    made: dict[str, Any] = {**sizes, **options}
    cache = KVCache(**made)
    cache.append(arrays["k"], arrays["v"], layout=layout)
    found = cache.attend(arrays["q"], scale=scale, is_causal=is_causal, layout=layout)
    o = heads_first(to_host(found, "o").values, layout)
    keys, values = (to_host(x, "k").values for x in cache.gather("float32"))
    fine = None
    if cache.format.nested:
        memory = cache._memory
        fine = np.asarray(memory.to_host(fine_tokens(memory, 0, k.shape[2])))[: k.shape[2]]
    runs = runs_of_ages(k.shape[2], fine)
    steps = stages(len(runs) + (reference is None))
    attend = partial(exact.attention, scale=scale, is_causal=is_causal)
    if reference is None:
        reference, _ = attend(q, k, v, progress=steps.next())
    by_age = []
    for ages in runs:
        at = slice(k.shape[2] + 1 - ages.stop, k.shape[2] + 1 - ages.start)
        some_keys, some_values = k.astype(np.float64), v.astype(np.float64)
        some_keys[:, :, at], some_values[:, :, at] = keys[:, :, at], values[:, :, at]
        with_these, _ = attend(q, some_keys, some_values, progress=steps.next())
        whole = fine is not None and bool(fine[at].all())
        by_age.append(
            AgeErrors(
                ages,
                8 if whole else cache.format.k_bits,
                8 if whole else cache.format.v_bits,
                relative_l2(keys[:, :, at], k[:, :, at]),
                relative_l2(values[:, :, at], v[:, :, at]),
                relative_l2(with_these, reference),
            )
        )
    return CacheErrorReport(
        format=cache.format,
        shape=shape,
        is_causal=is_causal,
        backend="gpu" if on_gpu else "emulation",
        nbytes=cache.nbytes,
        metrics=metrics(o, reference),
        by_age=tuple(by_age),
    )


def runs_of_ages(tokens: int, fine: NDArray[np.bool_] | None) -> list[range]:
    """Divide tokens by age, of which the newest has age 1.

    Parameters
    ----------
    tokens : int
    fine : ndarray of bool [token], or None
        Where some have more bits than others: which do. They are in runs of their own then.

    Returns
    -------
    list of range
        16 tokens, then up to 64, up to 256, and so on.
    """
    ends = {tokens}
    end = FIRST_RUN
    while end < tokens:
        ends.add(end)
        end *= GROWTH
    if fine is not None:
        changes = tokens - 1 - np.flatnonzero(np.diff(fine))
        # The newest tokens of more bits end where a unit does, which is no run of its own.
        ends = {x for x in ends if (np.abs(x - changes) > UNIT_TOKENS).all() or x == tokens}
        ends.update(changes.tolist())
    edges = [0, *sorted(ends)]
    return [range(a + 1, b + 1) for a, b in pairwise(edges)]
