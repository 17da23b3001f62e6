"""How a scheme turns an operand into codes and scales, and how these lie in memory."""

from __future__ import annotations

from typing import Literal

from ..scheme import INTEGERS, Scheme
from .attention import Scope, Type

__all__ = ["Name", "by_logarithm", "code_bits", "code_type", "coding", "stored_scope"]

Name = Literal["q", "k", "v"]


def code_type(scheme: Scheme, operand: Name, packed: bool = False) -> Type | None:
    """Return the type of an operand's codes under a scheme; None if it has none.

    Codes of 4 bits are int8, one a byte, unless they are to be packed.
    """
    product = scheme.pv if operand == "v" else scheme.qk
    of_four = Type.int4 if packed else Type.int8
    return {"int8": Type.int8, "int4": of_four, "fp8": Type.e4m3}.get(product)


def code_bits(scheme: Scheme, operand: Name) -> int:
    """Return the bits of an operand's codes; 8 if it has none."""
    return 4 if (scheme.pv if operand == "v" else scheme.qk) == "int4" else 8


def by_logarithm(scheme: Scheme) -> bool:
    """Whether V's scales ride in the exponents."""
    return scheme.pv in INTEGERS and scheme.v_scope == "token"


def stored_scope(scheme: Scheme, operand: Name) -> Scope:
    """Return the scope as which an operand's scales lie in memory; larger ones are repeated."""
    if operand == "v":
        scopes = {"token": Scope.token, "sorted": Scope.sorted, "block": Scope.block}
        return scopes.get(scheme.v_scope, Scope.channel)
    of_codes = scheme.q_scope if operand == "q" else scheme.k_scope
    if of_codes == "group":
        return Scope.group
    # What differs from key to key joins the scale of a key.
    by_key = by_logarithm(scheme) or scheme.smooth_q != "none"
    if operand == "q" or of_codes == "token":
        return Scope.token
    if of_codes in ("thread", "sorted"):
        return Scope(of_codes)
    # With 4 bits a unit of a score is so much that kernels of mma.sync must not round it, as they
    # do where a block has one scale (docs/numerics.md, section 11).
    return Scope.token if by_key or scheme.qk == "int4" else Scope.block


def coding(scheme: Scheme, operand: Name) -> tuple[object, ...] | None:
    """Return what of a scheme decides how an operand is quantized; None if it is not at all."""
    code = code_type(scheme, operand)
    if code is None:
        return None
    how = code, code_bits(scheme, operand), scheme.rotates(operand)
    if operand == "v":
        return *how, scheme.v_scope, scheme.smooth_v
    scope = scheme.q_scope if operand == "q" else scheme.k_scope
    group = scheme.qk_group if scope == "group" else None
    if operand == "q":
        return *how, scope, group, scheme.smooth_q
    stored = stored_scope(scheme, "k")
    block = scheme.p_block if scope == "block" or stored is Scope.block else None
    return *how, scope, group, block, stored, scheme.smooth_k
