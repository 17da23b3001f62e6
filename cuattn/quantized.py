"""An operand that is quantized once and attended many times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .dlpack import CPU, CUDA
from .errors import ArgumentError
from .form import Form
from .operand import DTYPES, Coded, Name, coding
from .reference.layout import in_tokens
from .reference.quantize import Quantized
from .reference.rounding import e4m3_values
from .scheme import Scheme
from .spec import Type

__all__ = ["QuantizedTensor"]


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """8-bit codes of Q, K or V with what they mean; `cuattn.quantize` makes them.

    All arrays are contiguous and of one library: CuPy, or NumPy for tensors in host memory. With H
    and D standing for the heads and the head_dim of this operand, Dp for D rounded up to one of 32,
    64, 96, 128, 192, 256, and Np for the number of tokens N rounded up to a multiple of 128:

    Attributes
    ----------
    codes : ndarray of int8, or of uint8 for the bits of e4m3
        Q and K: [B, H, N, Dp]. V: [B, H, Np / 128, Dp, 128], tokens permuted inside every 16 as
        `cuattn.reference.quantize.transpose_v` does. Padding is 0.
    scale : ndarray of float32
        Per token: of Q [B, H, N], of K [B, H, Np], of V [B, H, Np / 128, 3, 128], of the 3 the
        scale, 64 plus its logarithm to base 2, and its inverse; tokens of K and V are permuted
        inside every 16 as in the codes of V. [B, H, blocks] per block of keys, [B, H, Dp] per
        channel. Per tensor as Q per token, K per block and V per channel, those of a head being
        equal.
    vector : ndarray of float32 [B, H, D], or None
        What smoothing has subtracted from every token; None if the scheme does not smooth.
    operand : {"q", "k", "v"}
    scheme : Scheme
    shape : tuple of int
        (B, H, N, D), whatever layout the quantized array had.
    dtype : {"float16", "bfloat16", "float32"}
        Of the quantized array.

    Raises
    ------
    ArgumentError
        If the fields do not fit each other.
    """

    codes: Any
    scale: Any
    vector: Any
    operand: Name
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.operand not in ("q", "k", "v") or coding(self.scheme, self.operand) is None:
            raise ArgumentError(
                "operand", self.operand, f"quantized in scheme {self.scheme.name!r}"
            )
        if self.dtype not in DTYPES:
            raise ArgumentError("dtype", self.dtype, f"one of {list(DTYPES)}")
        if len(self.shape) != 4:
            raise ArgumentError("shape", self.shape, "(batch, heads, tokens, head_dim)")
        form = self._form
        if (self.vector is not None) != form.smoothed:
            raise ArgumentError("vector", self.vector, "an array" if form.smoothed else "None")
        fields = [("codes", form.data, form.dtype), ("scale", form.scale, "float32")]
        if form.smoothed:
            fields.append(("vector", form.vector, "float32"))
        for name, shape, dtype in fields:
            array = getattr(self, name)
            fits = type(array) is type(self.codes) and array.shape == shape and array.dtype == dtype
            if not (fits and array.flags.c_contiguous):
                expected = f"a contiguous array of shape {shape} and dtype {dtype}"
                raise ArgumentError(name, array, expected)

    def __repr__(self) -> str:
        kind, ordinal = self.device
        where = f"on GPU {ordinal}" if kind == CUDA else "in host memory"
        return (
            f"QuantizedTensor({self.operand} {self.shape} of {self.dtype}, "
            f"scheme {self.scheme.name!r}, {self.nbytes} bytes {where})"
        )

    @cached_property
    def device(self) -> tuple[int, int]:
        """DLPack's device type and the ordinal."""
        if isinstance(self.codes, np.ndarray):
            return CPU, 0
        return CUDA, int(self.codes.data.device_id)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.codes, self.scale, self.vector)
        return sum(int(x.nbytes) for x in arrays if x is not None)

    @cached_property
    def signature(self) -> Coded:
        """What `cuattn.problem` knows of the tensor."""
        how = coding(self.scheme, self.operand)
        return Coded(self.shape, self.dtype, self.device, self.operand, self.scheme.name, how)

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Where codes, scale and vector are on the GPU."""
        vector = 0 if self.vector is None else self.vector.data.ptr
        return self.codes.data.ptr, self.scale.data.ptr, vector

    def to_reference(self) -> Quantized:
        """Return the tensor as `cuattn.reference` has it, in host memory; waits for the GPU."""
        head_dim = self.shape[3]
        scale = _to_host(self._natural_scale())
        scope = getattr(self.scheme, f"{self.operand}_scope")
        if scope == "channel":
            scale = scale[..., :head_dim]
        elif scope == "tensor":  # all are equal, if there are any
            scale = scale.max(axis=-1, initial=self._form.empty_scale)
        vector = None if self.vector is None else _to_host(self.vector)
        codes = np.ascontiguousarray(_to_host(self._natural_codes()))
        return Quantized(codes, scale, scope, self.scheme.p_block, vector)

    def dequantize(self) -> Any:
        """Return the represented values, float32 [B, H, N, D], as an array of the same library."""
        tokens, head_dim = self.shape[2:]
        scale = self._natural_scale()
        if self._stored_scope == "channel":
            scale = scale[:, :, None, :head_dim]
        else:
            if self._stored_scope == "block":
                scale = scale.repeat(self.scheme.p_block, axis=2)[:, :, :tokens]
            scale = scale[..., None]
        x = self._natural_codes().astype("float32") * scale
        return x if self.vector is None else x + self.vector[:, :, None, :]

    def dot(self, vector: Any) -> Any:
        """Return the products of Q's tokens with a vector of each head of K, float32 [B, H, N].

        Parameters
        ----------
        vector : ndarray of float32 [B, num_kv_heads, D]
        """
        batch, heads, tokens, head_dim = self.shape
        kv_heads = max(vector.shape[1], 1)
        codes = self._natural_codes().reshape(batch, kv_heads, heads // kv_heads, tokens, head_dim)
        products = (codes * vector[:, :, None, None, :]).sum(axis=-1)
        return products.reshape(batch, heads, tokens) * self.scale

    @cached_property
    def _form(self) -> Form:
        return Form.of(self.scheme, self.operand, self.shape)

    @property
    def _stored_scope(self) -> Any:
        """The scope as which the scales are stored."""
        scope = getattr(self.scheme, f"{self.operand}_scope")
        repeated = {"q": "token", "k": "block", "v": "channel"}
        return repeated[self.operand] if scope == "tensor" else scope

    def _natural_scale(self) -> Any:
        """Return the scales, those of tokens as [B, H, N]."""
        scale = self.scale
        if self._stored_scope != "token":
            return scale
        if self.operand == "v":
            scale = scale[:, :, :, 0].reshape(*scale.shape[:2], -1)
        if self.operand != "q":
            scale = in_tokens(scale)
        return scale[:, :, : self.shape[2]]

    def _natural_codes(self) -> Any:
        """Return codes [B, H, N, D], tokens in their order: int8, or float32 values of e4m3."""
        batch, heads, tokens, head_dim = self.shape
        codes = self.codes
        if self.operand == "v":
            blocks, channels, block = codes.shape[2:]
            codes = in_tokens(codes).swapaxes(3, 4).reshape(batch, heads, blocks * block, channels)
        codes = codes[:, :, :tokens, :head_dim]
        return codes if self._form.code is Type.int8 else e4m3_values(codes)


def _to_host(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else x.get()
