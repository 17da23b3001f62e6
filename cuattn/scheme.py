"""What the numbers of an attention call mean: the types, scopes and smoothing of a scheme."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from .common.public import class_naming_keywords
from .errors import ArgumentError

__all__ = ["INTEGERS", "Scheme", "Scope"]

QKType = Literal["int8", "int4", "fp8", "fp16"]
PVType = Literal["int8", "int4", "fp8", "fp16"]
Scope = Literal["token", "group", "thread", "sorted", "block", "channel", "tensor"]
PRange = Literal["block", "row", "row_pow2", "static127", "twin"]
Smoothing = Literal["none", "mean", "robust", "sample"]
Rotation = Literal["none", "qk", "qkv"]
INTEGERS: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
# With "row_pow2" O is a sum of integers of all blocks, which have one scale.
FLOAT_O = ("block", "row", "static127", "twin")
# Smoothing by what is taken of all tokens.
_OF_ALL = ("none", "mean", "robust")


@class_naming_keywords
@dataclass(frozen=True)
class Scheme:
    """How one attention call represents Q, K, P and V.

    A scheme fixes the arithmetic and nothing about a kernel's tiling, so every kernel family and
    the reference's emulation compute the same numbers.

    Parameters
    ----------
    name : str
        Shown in tables; presets are looked up by it.
    qk : {"int8", "int4", "fp8", "fp16"}
        Operand type of Q Kᵀ. "fp8" is e4m3, "fp16" means unquantized: float16, or bfloat16 if the
        inputs are.
    pv : {"int8", "int4", "fp8", "fp16"}
        Operand type of P V. With "int4" V has 4 bits, and P 8.
    q_scope, k_scope : {"token", "group", "thread", "sorted", "block", "tensor"}
        Elements that share one scale of Q and K: a token; `qk_group` channels of a token; the
        tokens that one thread of a matrix product sees, as SageAttention2 has it; the same of all
        of a block of 128 keys that are sorted; `p_block` keys, or 128 rows of Q; or all of a
        (batch, head). "group" and "tensor" are for both or neither.
    v_scope : {"token", "sorted", "block", "channel", "tensor"}
        The same for V, with a block of 128 tokens; "token", "sorted" and "block" are for integers.
        "sorted" is for both K and V or neither: the tokens of a block are taken in an order in
        which those that share a scale are alike, `cuattn.reference.sorting`.
    p_range : {"block", "row", "row_pow2", "static127", "twin"}
        What P is quantized against: the row maximum inside a block of `p_block` keys (unsigned,
        255 steps); the running row maximum, with the first block last (unsigned, 255 steps);
        the same, but it starts a factor of 255/152 above the maximum of the first block that a row
        meets and then moves by whole powers of two, so that O can stay an integer; or the running
        maximum with 127 steps as INT-FlashAttention does; or, "twin", with 127 below ``2^-p_split``
        and 127 above, as PTQ4ViT does. P in floating point always uses the running maximum, "row":
        float16 as it is, e4m3 times 448.
    p_terms : {1, 2}
        Of 2, P is the sum of a high and a low byte, 65535 steps; for "block" and "row".
    p_split : int
        From 1 to 15; of "twin" only.
    p_block : {64, 128}
        Keys that one step of the online softmax sees.
    qk_group : {32, 64}
        Channels of the scope "group".
    smooth_q : {"none", "block"}
        Vector subtracted from Q: nothing, or the mean of each 128 rows, whose products with K are
        added to the logits again (SageAttention2, arXiv 2411.10958, section 3.1).
    rotate : {"none", "qk", "qkv"}
        What is rotated along head_dim by a randomized Hadamard matrix before it is quantized:
        nothing; Q and K, whose products stay as they are; or V too, and the output back:
        `cuattn.reference.rotation`.
    smooth_k : {"none", "mean", "robust", "sample"}
        Vector subtracted from every key: nothing; the mean over tokens; the same, of which no few
        tokens, such as hidden ones of any size, can move far; or that of at most 512 evenly spaced
        tokens. Softmax does not see it; `lse` is corrected for it.
    smooth_v : {"none", "mean", "robust", "sample"}
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
    smooth_q: Literal["none", "block"] = "none"
    qk_group: Literal[32, 64] = 64
    rotate: Rotation = "none"
    p_terms: Literal[1, 2] = 1
    p_split: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ArgumentError("scheme.name", self.name, "a string")
        hints = get_type_hints(Scheme)
        for field in fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if allowed and not _is_one_of(value, allowed):
                raise ArgumentError(f"scheme.{field.name}", value, f"one of {allowed}")
        self._check_scores()
        self._check_values()

    @property
    def p_matrices(self) -> int:
        """Matrices that P is split into, each of which is multiplied by V."""
        return 2 if self.p_range == "twin" else self.p_terms

    def __setstate__(self, state: dict[str, object]) -> None:
        """Check what an earlier version may have pickled with other fields or values."""
        self.__dict__.update(state)
        if state.keys() != {field.name for field in fields(self)}:
            raise ArgumentError("scheme", state, "pickled by this version")
        self.__post_init__()

    def rotates(self, operand: Literal["q", "k", "v"]) -> bool:
        """Whether an operand is rotated before it is quantized."""
        return self.rotate != "none" and operand in self.rotate

    def _check_scores(self) -> None:
        if self.qk == "fp8":
            self._require("q_scope", ("tensor",), "with qk='fp8'")
            self._require("k_scope", ("tensor",), "with qk='fp8'")
            self._require("smooth_k", ("none",), "with qk='fp8'")
            self._require("pv", ("fp8",), "with qk='fp8'")
            self._require("smooth_q", ("none",), "with qk='fp8'")
            self._require("rotate", ("none",), "with scales of whole heads of Q and K")
            return
        if self.qk == "fp16":
            self._require("q_scope", ("token",), "with qk='fp16'")
            self._require("k_scope", ("token",), "with qk='fp16'")
            self._require("pv", ("fp16",), "with qk='fp16'")
            self._require("smooth_q", ("none",), "with qk='fp16', which needs no Q scale")
            self._require("smooth_k", ("none",), "with qk='fp16', which needs no K scale")
            self._require("rotate", ("none",), "with qk='fp16', which has no codes")
            return
        integers = ("token", "group", "thread", "block", "tensor")
        self._require("q_scope", integers, f"with qk={self.qk!r}")
        self._require("k_scope", (*integers, "sorted"), f"with qk={self.qk!r}")
        if "sorted" in (self.k_scope, self.v_scope):
            self._check_sorted()
        for both in ("group", "tensor"):
            if both in (self.q_scope, self.k_scope):
                self._require("q_scope", (both,), f"with k_scope={both!r}")
                self._require("k_scope", (both,), f"with q_scope={both!r}")
        if self.k_scope == "tensor":
            # Ranges of whole heads are taken of the input, before anything is subtracted by blocks.
            self._require("smooth_q", ("none",), "with q_scope='tensor'")
            self._require("smooth_k", _OF_ALL, "with k_scope='tensor'")
            self._require("rotate", ("none",), "with scales of whole heads of Q and K")

    def _check_sorted(self) -> None:
        self._require("v_scope", ("sorted",), "with k_scope='sorted'")
        self._require("k_scope", ("sorted",), "with v_scope='sorted'")
        self._require("qk", ("int8",), "with k_scope='sorted'")
        self._require("pv", ("int8",), "with v_scope='sorted'")
        self._require("rotate", ("none", "qk"), "with v_scope='sorted'")
        self._require("smooth_q", ("none",), "with k_scope='sorted', whose scales are not tokens'")
        self._require("p_terms", (1,), "with v_scope='sorted'")

    def _check_values(self) -> None:
        self._require("v_scope", ("token", "sorted", "block", "channel", "tensor"))
        self._require("p_split", tuple(range(1, 16)))
        if self.p_terms == 2:
            self._require("pv", INTEGERS, "with p_terms=2")
            self._require("p_range", ("block", "row"), "with p_terms=2")
        if self.pv == "fp16":
            self._require("p_range", ("row",), "with pv='fp16'")
            self._require("smooth_v", ("none",), "with pv='fp16', which needs no V scale")
            self._require("rotate", ("none", "qk"), "with pv='fp16', whose V has no codes")
            return
        self._require("p_block", (128,), f"with pv={self.pv!r}")
        if self.pv == "fp8":
            self._require("p_range", ("row",), "with pv='fp8'")
            self._require("v_scope", ("channel", "tensor"), "with pv='fp8'")
        if self.v_scope in ("token", "sorted"):
            self._require("p_range", ("block",), f"with v_scope={self.v_scope!r}")
        elif self.v_scope == "block":
            self._require("p_range", FLOAT_O, "with v_scope='block'")
        else:
            # V's range takes a pass over all tokens, which gives the mean as well.
            self._require("smooth_v", _OF_ALL, f"with v_scope={self.v_scope!r}")

    def _require(self, name: str, allowed: tuple[object, ...], when: str = "") -> None:
        value = getattr(self, name)
        if not _is_one_of(value, allowed):
            raise ArgumentError(f"scheme.{name}", value, f"one of {allowed} {when}".rstrip())


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Whether a value is an allowed one, and of its type: True must not pass for 1."""
    of_kind = [one for one in allowed if isinstance(value, bool) == isinstance(one, bool)]
    return any(isinstance(value, type(one)) and value == one for one in of_kind)
