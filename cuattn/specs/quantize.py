"""What the kernels that quantize fix at compile time; mirrors quant/quantize_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..common.sizes import ceil_div, round_up
from ..reference.layout import HEAD_DIMS, TOKEN_PAD
from ..reference.smoothing import Q_BLOCK
from ..scheme import Scheme
from .attention import Scope, Type
from .coding import code_bits, code_type, stored_scope
from .kernel_spec import KernelSpec
from .quantize_storage import LARGE_SMEM, RESERVED, SMEM, storage_bytes
from .row_lanes import row_lanes

__all__ = ["TOKEN_PAD", "QuantizeSpec"]

# Threads of a CTA, and 16-byte loads of each that leave registers for a second CTA beside it.
_THREADS = 256
_LOADS = 16

# Rotated elements of a lane, which leave as much.
_ROTATED = 64


@dataclass(frozen=True)
class QuantizeSpec(KernelSpec):
    """Template argument of `quantize_operands`: one launch for any of Q, K and V.

    Parameters
    ----------
    input : Type
        Elements of the operands.
    q, k, v : Type
        What each becomes: int8, int4 or e4m3 codes, or values of type fp16 or bf16.
    qk_bits, v_bits : int
        Of an integer code: 4 in an int8 are one code a byte.
    head_dim, head_dim_v : int
        Of Q and K, and of V. Padded: one of those of `cuattn.reference.layout`.
    q_scope, k_scope : Scope
        token, group, thread, block (of 128 rows of Q, of `k_block` keys) or tensor; of K sorted.
    k_stored : Scope
        token, group, thread, sorted or block: how K's scales lie in memory.
    k_block : int
        Keys of a block, 64 or 128.
    qk_group : int
        Channels of a group, 32 or 64.
    q_smooth : bool
        Whether a vector is subtracted from every 128 queries.
    k_smooth, v_smooth : bool
        Whether a vector is subtracted from every token.
    rotate : bool
        Whether Q and K are rotated. V is by a launch of its own.
    v_scope : Scope
        token, sorted (as K's), block (of 128 tokens), channel or tensor.
    aligned : bool
        Whether bases and strides of the inputs are multiples of 16 bytes.
    varlen : bool
        Whether lengths are read from memory.
    """

    derived: ClassVar[tuple[str, ...]] = (
        "qk_lanes",
        "k_read_again",
        "staged",
        "v_staged",
        "q_tile",
        "k_tile",
        "v_tile",
        "num_threads",
        "min_ctas",
        "smem_bytes",
    )
    source: ClassVar[str] = "quantize.cu"
    entry: ClassVar[str] = "quantize"
    function: ClassVar[str] = "quantize_operands"
    params: ClassVar[str] = "QuantizeParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"

    input: Type
    q: Type
    k: Type
    v: Type
    qk_bits: int
    v_bits: int
    head_dim: int
    head_dim_v: int
    q_scope: Scope
    k_scope: Scope
    k_stored: Scope
    k_block: int
    qk_group: int
    q_smooth: bool
    k_smooth: bool
    rotate: bool
    v_scope: Scope
    v_smooth: bool
    aligned: bool
    varlen: bool = False

    @classmethod
    def of(
        cls,
        scheme: Scheme,
        element: Type,
        head_dim: int,
        aligned: bool,
        packed_qk: bool = False,
        packed_v: bool = False,
        *,
        head_dim_v: int | None = None,
        varlen: bool = False,
    ) -> QuantizeSpec:
        """Return the spec that a scheme needs for inputs of a type and padded head dimension.

        Parameters
        ----------
        packed_qk, packed_v : bool
            Whether codes of 4 bits are stored two to a byte. V's that are rotated have a spec of
            their own.
        head_dim_v : int, optional
            That of V, padded, if it is another one.
        varlen : bool
        """
        half = Type.bf16 if scheme.qk == "fp16" and element is Type.bf16 else Type.fp16
        v = None if scheme.rotates("v") else code_type(scheme, "v", packed_v)
        return cls(
            input=element,
            q=code_type(scheme, "q", packed_qk) or half,
            k=code_type(scheme, "k", packed_qk) or half,
            v=v or half,
            qk_bits=code_bits(scheme, "q"),
            v_bits=8 if v is None else code_bits(scheme, "v"),
            head_dim=head_dim,
            head_dim_v=head_dim if head_dim_v is None else head_dim_v,
            q_scope=Scope(scheme.q_scope),
            k_scope=Scope(scheme.k_scope),
            k_stored=stored_scope(scheme, "k"),
            k_block=scheme.p_block,
            qk_group=scheme.qk_group,
            q_smooth=scheme.smooth_q != "none",
            k_smooth=scheme.smooth_k != "none",
            rotate=scheme.rotates("q"),
            v_scope=Scope.token if v is None else Scope(scheme.v_scope),
            v_smooth=v is not None and scheme.smooth_v != "none",
            aligned=aligned,
            varlen=varlen,
        )

    @classmethod
    def of_rotated_values(
        cls, scheme: Scheme, head_dim: int, packed_v: bool = False, varlen: bool = False
    ) -> QuantizeSpec:
        """Return the spec of V alone, which another kernel has smoothed and rotated."""
        v_only = replace(scheme, rotate="none", smooth_v="none")
        kind = Type.fp32, head_dim
        return cls.of(v_only, *kind, aligned=True, packed_v=packed_v, varlen=varlen)

    @property
    def num_threads(self) -> int:
        """Threads of one CTA: more only where registers must hold large blocks of tokens."""
        least = max(self._q_scope_tokens, self._k_scope_tokens)
        many = least * self.head_dim * self._width > 16 * _LOADS * _THREADS
        if self.k_read_again:
            many = self._k_scope_tokens > 64  # two rows of a lane either way
        threads = 2 * _THREADS if many else _THREADS
        if not self._sorted:
            return threads
        # A lane makes words of four tokens of V, two if it has a single load of each row; of a V of
        # fewer channels not every lane does. There are four warps at least.
        return min(threads, max(TOKEN_PAD // _loaded_rows(self._row_bytes) * self._lanes, 128))

    @property
    def qk_lanes(self) -> int:
        """Lanes that share a rotated row of Q or K at most; 0 of others, which share what they may.

        A group of channels is of neighbouring lanes.
        """
        if not self.rotate or self.q_scope is Scope.group:
            return 0
        return {192: 4, 256: 4}.get(self.head_dim, 2 if self.head_dim < 192 else 8)

    @property
    def k_read_again(self) -> bool:
        """Whether rows of K whose scales belong together are read twice: `RowsAgain`.

        Those of more than 256 channels are more than the registers of a CTA hold.
        """
        return self.k.coded and self._k_scope_tokens > 0 and self.head_dim > HEAD_DIMS[-1]

    @property
    def q_tile(self) -> int:
        """Queries of one CTA: at least the rows whose scales belong together."""
        return max(self._tokens(self._rows, self._row_lanes), self._q_scope_tokens)

    @property
    def k_tile(self) -> int:
        """Keys of one CTA, likewise."""
        if self._sorted:
            return TOKEN_PAD
        return max(self._tokens(self._rows, self._row_lanes), self._k_scope_tokens)

    @property
    def v_tile(self) -> int:
        """Tokens of V of one CTA: no transposed row is shorter than the padding."""
        if self._sorted:
            return TOKEN_PAD
        row_bytes = self.head_dim_v * self.input.nbytes
        tokens = self._tokens(_loaded_rows(row_bytes), row_lanes(row_bytes))
        return max(tokens, TOKEN_PAD if self.v.coded else 0)

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor: as many as leave registers for the 16-byte loads of a lane."""
        if self.k_read_again:
            return 2 * _THREADS // self.num_threads
        if self._sorted:
            # Bytes of keys that a lane holds while V is looked at, and of what is subtracted.
            held = TOKEN_PAD * self.head_dim * self._width // self.num_threads
            if self.rotate:
                ctas = 2 if held <= 256 else 1
            else:
                held += 4 * self.head_dim // self._lanes
                ctas = 2 if held <= 208 else 1
            return ctas * _THREADS // self.num_threads or 1
        loads = max(self.q_tile, self.k_tile) * self._row_bytes // (16 * self.num_threads)
        # Rows of 1 KiB take so many passes over V that their addresses claim registers too, and
        # what is rotated is held in float32.
        widest = max(self.head_dim, self.head_dim_v) * self.input.nbytes
        few = loads <= 8 and widest < 1024 and not self.rotate
        return (3 if few else 2) * _THREADS // self.num_threads

    @property
    def staged(self) -> bool:
        """Whether rows of Q and K pass through shared memory, so that they come a tile ahead.

        It is of use where they take more than loads. A CTA then takes one tile after another, in
        each of which all warps have some of V; of a V of fewer channels they would not. It counts
        tiles of heads that all have as many, which sequences do not.
        """
        wanted = self.q.coded and (self.rotate or self._sorted) and not self.k_read_again
        possible = self.aligned and not self.varlen and self.head_dim == self.head_dim_v
        return wanted and possible and self._fits(True, False)

    @property
    def v_staged(self) -> bool:
        """The same of V where keys are sorted, for it is read twice."""
        return self._sorted and self.staged and self._fits(True, True)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA."""
        return storage_bytes(self, self.staged, self.v_staged)

    def ctas(self, tiles: int, num_sms: int) -> int:
        """Return how many CTAs share some tiles: one each, or as many as run at a time."""
        return min(tiles, self.min_ctas * num_sms) if self.staged else tiles

    def tiles(self, operand: Literal["q", "k", "v"], seqlen: int) -> int:
        """Return the CTAs of one head of an operand."""
        tile: int = getattr(self, f"{operand}_tile")
        if operand == "k" and self.k.coded and self.k_stored not in (Scope.block, Scope.sorted):
            seqlen = round_up(seqlen, TOKEN_PAD)  # the scales are padded
        return ceil_div(seqlen, tile)

    def _fits(self, staged: bool, v_staged: bool) -> bool:
        """Whether shared memory holds a CTA on every GPU, and on large ones all that should run."""
        smem_bytes = storage_bytes(self, staged, v_staged)
        return smem_bytes <= SMEM and self.min_ctas * (smem_bytes + RESERVED) <= LARGE_SMEM

    @property
    def _q_scope_tokens(self) -> int:
        """Queries that a CTA has to have together."""
        return {Scope.block: Q_BLOCK, Scope.thread: 32}.get(self.q_scope, 0)

    @property
    def _k_scope_tokens(self) -> int:
        """Keys that a CTA has to have together."""
        of_block = {Scope.block: self.k_block, Scope.sorted: self.k_block, Scope.thread: 64}
        return of_block.get(self.k_scope, 0)

    @property
    def _sorted(self) -> bool:
        """Whether a CTA has a block of both K and V."""
        return self.k_scope is Scope.sorted

    def _tokens(self, rows: int, lanes: int) -> int:
        """Return the tokens of a CTA whose lanes have some rows, which they share."""
        return rows * self.num_threads // lanes

    @property
    def _width(self) -> int:
        """Bytes of an element of Q or K while it is held: rotated rows are float32."""
        return 4 if self.rotate else self.input.nbytes

    @property
    def _row_bytes(self) -> int:
        return self.head_dim * self.input.nbytes

    @property
    def _lanes(self) -> int:
        """Lanes that share a row of Q or K as it is loaded."""
        return row_lanes(self._row_bytes)

    @property
    def _row_lanes(self) -> int:
        """Lanes that share a row of Q or K: `Rows` in quant/rows.cuh."""
        runs = self.head_dim // 16
        return min(runs & -runs, self.qk_lanes) if self.qk_lanes else self._lanes

    @property
    def _rows(self) -> int:
        """Rows of Q and K of a lane."""
        rows = _loaded_rows(self._row_bytes)
        if not self.rotate:
            return rows
        # Rotated rows are held in float32.
        return max(min(rows, _ROTATED * self._row_lanes // self.head_dim), 1)


def _loaded_rows(row_bytes: int) -> int:
    """Return the rows of a lane whose loads are under way at a time: `RowLanes` as well."""
    return 8 if row_bytes == 16 * row_lanes(row_bytes) else 4
