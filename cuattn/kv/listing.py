"""Every kernel that KV caches of some kinds can need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TypeAlias

from ..arrays.device import Target
from ..errors import ArgumentError
from ..kv_format import KV_BITS, KVFormat
from ..operands.operand import DTYPES
from ..plan.kernels import AnySpec, attention_spec
from ..reference.prefill import prefill_scheme
from ..specs.attention import Type
from ..specs.quantize import QuantizeSpec
from ..specs.rules import Rules
from ..specs.units import UnitsSpec
from ..specs.wgmma import WgmmaSpec
from .append_spec import AppendSpec, OffsetSpec
from .operands_spec import OperandsSpec
from .queries_spec import QueriesSpec
from .spec import DecodeSpec, decode_spec

__all__ = ["KVSpec", "kv_formats", "kv_specs", "prefill_specs"]

KVSpec: TypeAlias = (
    AppendSpec | DecodeSpec | OffsetSpec | OperandsSpec | QueriesSpec | UnitsSpec | AnySpec
)

_GROUPS = (0, 32, 64)

# Queries times heads of a group up to the most that a kernel takes at once.
_ROWS = range(1, 33)


def kv_formats(head_dims: Iterable[int], bits: Iterable[int]) -> Iterator[KVFormat]:
    """List the formats of caches whose K and V each have one of some numbers of bits.

    Parameters
    ----------
    head_dims : iterable of int
        Those that no cache can have are left out.
    bits : iterable of {8, 4}

    Raises
    ------
    ArgumentError
        For another number of bits.
    """
    bits = tuple(bits)
    for number in bits:
        if number not in KV_BITS:
            raise ArgumentError("bits", number, f"one of {KV_BITS}")
    choices = (False, True)
    for kind in product(head_dims, bits, bits, _GROUPS, choices, choices, choices):
        try:
            yield KVFormat(*kind)
        except ArgumentError:  # no cache's head_dim, half a group, or 8 bits and groups or more
            continue


def kv_specs(
    head_dims: Iterable[int], dtypes: Iterable[str], bits: Iterable[int], target: Target
) -> list[KVSpec]:
    """List every kernel that appending to such caches and attending with them can need, each once.

    Parameters
    ----------
    head_dims : iterable of int
        Those that no cache can have are left out.
    dtypes : iterable of {"float16", "bfloat16", "float32"}
        Of the arrays that are appended and of the queries.
    bits : iterable of {8, 4}
        Of the codes of K and of V.
    target : Target
        From `cuattn.arrays.device.target`.

    Raises
    ------
    ArgumentError
        For another number of bits.
    """
    specs: dict[KVSpec, None] = {}
    elements = [DTYPES[dtype] for dtype in dtypes]
    for kv_format, element in product(kv_formats(head_dims, bits), elements):
        for rows in _ROWS:
            specs[decode_spec(kv_format, element, rows, target)] = None
        for aligned in (True, False):
            for single in (False, True):
                append = AppendSpec.of(kv_format, element, aligned=aligned, single=single)
                specs[append] = None
            specs[OffsetSpec(element, kv_format.head_dim, aligned)] = None
        specs[OperandsSpec.of(kv_format)] = None
        specs |= dict.fromkeys(prefill_specs(kv_format, element, target))
    return list(specs)


def prefill_specs(kv_format: KVFormat, element: Type, target: Target) -> Iterator[KVSpec]:
    """List the kernels besides `OperandsSpec` that calls with many rows need, without options."""
    head_dim = kv_format.padded
    is_padded = head_dim != kv_format.head_dim
    if is_padded:
        yield QueriesSpec.of(kv_format, element, rope=False)
    for smoothed, choice in product((False, True), repeat=2):
        scheme = prefill_scheme(kv_format.rotate, smoothed)
        if not is_padded:
            yield QuantizeSpec.of(scheme, element, head_dim, aligned=choice, varlen=True)
        rules = Rules(varlen=True)
        spec = attention_spec(scheme, head_dim, element, choice, target, rules=rules)
        yield spec
        if isinstance(spec, WgmmaSpec):
            yield UnitsSpec(spec.rows)
