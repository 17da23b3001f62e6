"""What the numbers of an attention call mean: the types, scopes and smoothing of a scheme."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from .errors import ArgumentError

__all__ = ["PRESETS", "Scheme", "resolve"]

QKType = Literal["int8", "fp8", "fp16"]
PVType = Literal["int8", "fp8", "fp16"]
Scope = Literal["token", "block", "channel", "tensor"]
PRange = Literal["block", "row", "row_pow2", "static127"]
Smoothing = Literal["none", "mean", "sample"]


@dataclass(frozen=True)
class Scheme:
    """How one attention call represents Q, K, P and V.

    A scheme fixes the arithmetic and nothing about a kernel's tiling, so every kernel family and
    the reference's emulation compute the same numbers.

    Parameters
    ----------
    name : str
        Shown in tables; presets are looked up by it.
    qk : {"int8", "fp8", "fp16"}
        Operand type of Q Kᵀ. "fp8" is e4m3, "fp16" means unquantized: float16, or bfloat16 if the
        inputs are.
    pv : {"int8", "fp8", "fp16"}
        Operand type of P V.
    q_scope, k_scope : {"token", "block", "tensor"}
        Elements that share one scale of Q and K. A "block" of K is `p_block` keys; INT8 Q is per
        token. "tensor" is one scale per (batch, head), for FP8.
    v_scope : {"token", "channel", "tensor"}
        The same for V; "token" is for INT8.
    p_range : {"block", "row", "row_pow2", "static127"}
        What P is quantized against: the row maximum inside a block of `p_block` keys (unsigned,
        255 steps); the running row maximum (unsigned, 255 steps); the same, but after a row's
        first block it moves by whole powers of two, so that O can stay an integer; or the running
        maximum with 127 steps as INT-FlashAttention does. P in floating point always uses the
        running maximum, "row": float16 as it is, e4m3 times 448.
    p_block : {64, 128}
        Keys that one step of the online softmax sees.
    smooth_k : {"none", "mean", "sample"}
        Vector subtracted from every key: nothing, the mean over tokens, or the mean over at most
        512 evenly spaced tokens. Softmax does not see it; `lse` is corrected for it.
    smooth_v : {"none", "mean", "sample"}
        Vector subtracted from every token of V and added to the output, which is exact because rows
        of P sum to one.

    Raises
    ------
    ArgumentError
        For a value that is unknown or a combination that no kernel implements.
    """

    name: str
    qk: QKType = "int8"
    pv: PVType = "int8"
    q_scope: Scope = "token"
    k_scope: Scope = "token"
    v_scope: Scope = "token"
    p_range: PRange = "block"
    p_block: Literal[64, 128] = 128
    smooth_k: Smoothing = "sample"
    smooth_v: Smoothing = "none"

    def __post_init__(self) -> None:
        hints = get_type_hints(Scheme)
        for field in fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if allowed and value not in allowed:
                raise ArgumentError(f"scheme.{field.name}", value, f"one of {allowed}")
        self._check_scores()
        self._check_values()

    def _check_scores(self) -> None:
        if self.qk == "fp8":
            self._require("q_scope", ("tensor",), "with qk='fp8'")
            self._require("k_scope", ("tensor",), "with qk='fp8'")
            self._require("smooth_k", ("none",), "with qk='fp8'")
            self._require("pv", ("fp8",), "with qk='fp8'")
            return
        self._require("q_scope", ("token",), f"with qk={self.qk!r}")
        self._require("k_scope", ("token", "block"), f"with qk={self.qk!r}")
        if self.qk == "fp16":
            self._require("pv", ("fp16",), "with qk='fp16'")
            self._require("smooth_k", ("none",), "with qk='fp16', which needs no K scale")

    def _check_values(self) -> None:
        self._require("v_scope", ("token", "channel", "tensor"))
        if self.pv == "fp16":
            self._require("p_range", ("row",), "with pv='fp16'")
            self._require("smooth_v", ("none",), "with pv='fp16', which needs no V scale")
            return
        self._require("p_block", (128,), f"with pv={self.pv!r}")
        if self.pv == "fp8":
            self._require("p_range", ("row",), "with pv='fp8'")
            self._require("v_scope", ("channel", "tensor"), "with pv='fp8'")
        if self.v_scope == "token":
            self._require("p_range", ("block",), "with v_scope='token'")
        else:
            # V's range takes a pass over all tokens, which gives the mean as well.
            self._require("smooth_v", ("none", "mean"), f"with v_scope={self.v_scope!r}")

    def _require(self, name: str, allowed: tuple[object, ...], when: str = "") -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ArgumentError(f"scheme.{name}", value, f"one of {allowed} {when}".rstrip())


PRESETS: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("int8", smooth_v="sample"),
        Scheme("int8-block", k_scope="block", v_scope="channel", smooth_v="mean"),
        # The fewest instructions for each score.
        Scheme(
            "int8-fast", k_scope="block", v_scope="channel", p_range="row_pow2", smooth_v="mean"
        ),
        # The 8-bit products of SageAttention2 (arXiv 2411.10958, section 3): INT8 Q Kᵀ, and e4m3
        # P V with P times 448 and V per channel.
        Scheme(
            "int8-fp8", pv="fp8", k_scope="block", v_scope="channel", p_range="row", smooth_v="mean"
        ),
        Scheme("int8-fp16", pv="fp16", p_range="row", p_block=64),
        # INT-FlashAttention (arXiv 2409.16997): full INT8, and INT8 Q Kᵀ with float16 P V.
        Scheme("int-flash", v_scope="tensor", p_range="static127", smooth_k="none"),
        Scheme("int-flash-half", pv="fp16", p_range="row", p_block=64, smooth_k="none"),
        # One scale for each head of Q, K and V, as FlashAttention-3 (arXiv 2407.08608) compares to.
        Scheme(
            "fp8",
            qk="fp8",
            pv="fp8",
            q_scope="tensor",
            k_scope="tensor",
            v_scope="tensor",
            p_range="row",
            smooth_k="none",
        ),
        Scheme("fp16", qk="fp16", pv="fp16", p_range="row", p_block=64, smooth_k="none"),
    )
}


def resolve(scheme: str | Scheme) -> Scheme:
    """Return the scheme itself, or the preset of that name.

    Raises
    ------
    ArgumentError
        If the name is not a preset, or the argument is neither a name nor a `Scheme`.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in PRESETS:
        return PRESETS[scheme]
    raise ArgumentError("scheme", scheme, f"a Scheme or one of {sorted(PRESETS)}")
