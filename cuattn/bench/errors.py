"""Errors of schemes, baselines and KV caches against attention in float64, all on the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import cuattn

from ..presets import resolve
from ..records.record import Accuracy
from ..scheme import Scheme
from . import caches, exact, ours
from .baselines import registry as baselines
from .baselines.registry import Baseline
from .cases import Case
from .inputs import inputs
from .left_out import LeftOut, give_back

# A shape and the name of the distribution that is drawn.
Point: TypeAlias = tuple[Case, str]


def of_schemes(
    point: Point,
    schemes: Iterable[str | Scheme],
    present: Iterable[Baseline],
    left_out: LeftOut,
) -> Iterator[Accuracy]:
    """Yield the errors of every scheme and baseline on one input.

    Parameters
    ----------
    point : (Case, str)
    schemes : iterable of str or Scheme
        Those that the GPU has kernels of.
    present : iterable of Baseline
        From `baselines.present`.
    left_out : callable
        Told which of these fail on this shape, and why.
    """
    case, name = point
    q, k, v = inputs(case, name)
    wanted = exact.attention(q, k, v, is_causal=case.is_causal).get()
    for scheme in schemes:
        o = ours.prepare(q, k, v, case, scheme).end_to_end()
        how = resolve(scheme).name
        yield exact.errors(o, wanted, case, name, how, ours.family(scheme, case))
    for baseline in present:
        run = baselines.bound(baseline, q, k, v, case, left_out)
        if run is not None:
            o = run.end_to_end()
            yield exact.errors(o, wanted, case, name, baseline.name, baselines.FAMILY)
    give_back()


def of_caches(
    point: Point, formats: Mapping[str, Mapping[str, Any]] = caches.SCHEMES
) -> Iterator[Accuracy]:
    """Yield the errors of decoding from KV caches of some formats, given as options by name."""
    case, name = point
    q, k, v = inputs(case, name)
    wanted = exact.attention(q, k, v, is_causal=case.is_causal).get()
    for scheme, options in formats.items():
        cache = cuattn.KVCache(
            case.batch, case.num_kv_heads, case.head_dim, case.seqlen_kv, **options
        )
        cache.append(k, v)
        o = cache.attend(q, is_causal=case.is_causal)
        yield exact.errors(o, wanted, case, name, scheme, caches.FAMILY)
    give_back()
