"""An operand that is quantized once and attended many times."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.view import CPU, CUDA, check_address, cupy_module, view_cupy
from ..common.public import class_naming_keywords
from ..errors import ArgumentError
from ..reference.quantize import Quantized, block_of, scope_of
from ..reference.rotation import butterflies, hadamard_block, signs
from ..reference.smoothing import Q_BLOCK
from ..reference.sorting import SORTED_BLOCK, natural_order
from ..scheme import Scheme
from ..specs.coding import Name, coding
from .layout import CodeLayout
from .operand import DTYPES, Coded
from .token_order import factors, natural_codes, natural_scale, scale_of_scopes

__all__ = ["QuantizedTensor"]

# Of its arrays in bytes: kernels load vectors of as many, which lie at multiples only.
_ALIGNMENT = 16

# Kinds of tensors that are known by an object of their own.
_REMEMBERED = 1024


@class_naming_keywords
@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """Codes of Q, K or V with what they mean; `cuattn.quantize` makes them.

    All arrays are contiguous and of one library: CuPy, or NumPy for tensors in host memory. It can
    be copied and pickled; CuPy's arrays are unpickled to its current GPU, whichever that is. With H
    and D standing for the heads and the head_dim of this operand, Dp for D rounded up to one of 32,
    64, 96, 128, 192, 256, 320, 384, 512, and Np for the number of tokens N rounded up to a multiple
    of 128:

    Attributes
    ----------
    codes : ndarray of int8, or of uint8 for the bits of e4m3 and for pairs of 4 bits
        Q and K: [B, H, N, Dp], of sorted keys [B, H, Np, Dp]. V: [B, H, Np / 128, Dp, 128], tokens
        permuted inside every 16 as
        `cuattn.reference.quantize.transpose_v` does. Padding is 0. Of 4 bits the last axis has half
        the length: two neighbours to a byte, the first in its lower half.
    scale : ndarray of float32
        Per token: of Q [B, H, N], of K [B, H, Np], of V [B, H, Np / 128, 3, 128], of the 3 the
        scale, 64 plus its logarithm to base 2, and its inverse; tokens of K and V are permuted
        inside every 16 as in the codes of V. Per group of channels, of which Dp has G, [B, H, N, G]
        and [B, H, G, Np]. Per thread of K [B, H, Np / 16], four of each 64 tokens. Of sorted tokens
        of K [B, H, Np / 128, 16], of V [B, H, Np / 128, 3, 16], with the logarithm as it is. Per
        block of V [B, H, Np / 128], per channel [B, H, Dp]. A scale of more tokens of Q or K is
        that of each of them; but those of blocks of keys, or of a whole head of K, are
        [B, H, blocks] where neither V has scales of tokens nor Q is smoothed nor codes have 4 bits.
        The one scale of a head of V is that of each channel.
    vector : ndarray of float32, or None
        What smoothing has subtracted from every token [B, H, D], of Q from every 128 tokens
        [B, H, blocks, D]; None if the scheme does not smooth.
    operand : {"q", "k", "v"}
    scheme : Scheme
    shape : tuple of int
        (B, H, N, D), whatever layout the quantized array had.
    dtype : {"float16", "bfloat16", "float32"}
        Of the quantized array.
    order : ndarray of uint8 [B, H, Np / 128, 128], or None
        Of sorted tokens, which of its block each place has (`cuattn.reference.sorting`); one array
        for K and V that `cuattn.quantize_kv` has made together. None if they are in their natural
        order, as K or V quantized alone is.

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
    order: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise ArgumentError("scheme", self.scheme, "a Scheme")
        if self.operand not in ("q", "k", "v") or coding(self.scheme, self.operand) is None:
            raise ArgumentError(
                "operand", self.operand, f"quantized in scheme {self.scheme.name!r}"
            )
        if self.dtype not in DTYPES:
            raise ArgumentError("dtype", self.dtype, f"one of {list(DTYPES)}")
        if not isinstance(self.shape, tuple) or [type(x) for x in self.shape] != 4 * [int]:
            raise ArgumentError("shape", self.shape, "(batch, heads, tokens, head_dim)")
        code_layout = self._code_layout
        if (self.vector is not None) != code_layout.smoothed:
            raise ArgumentError(
                "vector", self.vector, "an array" if code_layout.smoothed else "None"
            )
        expected_arrays = [
            ("codes", code_layout.data, code_layout.dtype),
            ("scale", code_layout.scale, "float32"),
        ]
        if code_layout.smoothed:
            expected_arrays.append(("vector", code_layout.vector, "float32"))
        if self.order is not None:
            if not code_layout.order:
                raise ArgumentError("order", self.order, "None: no tokens are sorted")
            expected_arrays.append(("order", code_layout.order, "uint8"))
        library = _array_class(self.codes)
        for name, shape, dtype in expected_arrays:
            array = getattr(self, name)
            fits = isinstance(array, library) and array.shape == shape and array.dtype == dtype
            if not (fits and array.flags.c_contiguous):
                expected = f"a contiguous array of shape {shape} and dtype {dtype}"
                if name != "codes":
                    expected += ", of the library of the codes"
                raise ArgumentError(name, array, expected)
        if self.order is not None and _on_host(self.order):
            # On a GPU nobody looks: what is no order gives a wrong result there, and nothing else.
            whole = np.arange(SORTED_BLOCK, dtype=np.uint8)
            if not np.array_equal(np.sort(self.order), np.broadcast_to(whole, self.order.shape)):
                raise ArgumentError("order", self.order, "each of 0 to 127 once in every block")

    def __reduce__(self) -> tuple[type[QuantizedTensor], tuple[Any, ...]]:
        # What is cached, the addresses above all, is not true of a copy.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

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
        return (CPU, 0) if _on_host(self.codes) else view_cupy(self.codes).device

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.codes, self.scale, self.vector, self.order)
        return sum(int(x.nbytes) for x in arrays if x is not None)

    @cached_property
    def signature(self) -> Coded:
        """What `cuattn.operands.problem` knows of the tensor."""
        how = coding(self.scheme, self.operand)
        return Coded(self.shape, self.dtype, self.device, self.operand, self.scheme.name, how)

    @cached_property
    def kind(self) -> object:
        """The same object of all tensors of one `signature`, as a key that is found at once."""
        return _kind_of(self.signature)

    @cached_property
    def all_addresses(self) -> tuple[int, int, int, int]:
        """Its `addresses` and that of the order; 0 of what there is not."""
        return (*self.addresses, self.order_address)

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Where codes, scale and vector are on the GPU; 0 if there is no vector."""
        return self._address("codes"), self._address("scale"), self._address("vector")

    @cached_property
    def order_address(self) -> int:
        """Where the order is on the GPU; 0 if there is none."""
        return self._address("order")

    def to_reference(self) -> Quantized:
        """Return the tensor as `cuattn.reference` has it, in host memory; waits for the GPU.

        What smoothing has subtracted from Q stays out, as in `cuattn.reference.quantize.operands`.
        """
        scheme, name = self.scheme, self.operand
        scale = _to_host(self._natural_scale())
        smoothed = self.vector is not None and name != "q"
        return Quantized(
            np.ascontiguousarray(_to_host(self._natural_codes())),
            scale_of_scopes(scale, scheme, name, self.shape[2], self._code_layout.empty_scale),
            scope_of(name, getattr(scheme, f"{name}_scope")),
            block_of(scheme, name),
            _to_host(self.vector) if smoothed else None,
            scheme.rotates(name),
            self._order_on_host(),
        )

    def dequantize(self) -> Any:
        """Return the represented values, float32 [B, H, N, D], as an array of the same library."""
        tokens, head_dim = self.shape[2:]
        scale = factors(self._natural_scale(), self.scheme, self.operand, tokens)
        with np.errstate(invalid="ignore"):  # of scales that are infinite
            x = self._natural_codes().astype("float32") * scale
        if self.scheme.rotates(self.operand):
            size = hadamard_block(head_dim)
            back = (size**-0.5 * signs(head_dim)).astype(np.float32)
            x = butterflies(x, size) * _of_library(x, back)
        if self.vector is None:
            return x
        if self.operand == "q":
            return x + self.vector.repeat(Q_BLOCK, axis=2)[:, :, :tokens]
        return x + self.vector[:, :, None, :]

    def dot(self, vector: Any) -> Any:
        """Return the products of Q's tokens with a vector of each head of K, float32 [B, H, N].

        Parameters
        ----------
        vector : ndarray of float32 [B, num_kv_heads, D]
        """
        batch, heads, tokens, head_dim = self.shape
        kv_heads = max(vector.shape[1], 1)
        x = self.dequantize().reshape(batch, kv_heads, heads // kv_heads, tokens, head_dim)
        products = (x * vector[:, :, None, None, :]).sum(axis=-1)
        return products.reshape(batch, heads, tokens)

    def _address(self, name: str) -> int:
        x = getattr(self, name)
        if x is None:
            return 0
        seen = view_cupy(x)
        check_address(seen, x, name)
        if seen.ptr % _ALIGNMENT:
            raise ArgumentError(
                name, x, f"at a multiple of {_ALIGNMENT} bytes, as CuPy's memory is"
            )
        return seen.ptr

    @cached_property
    def _code_layout(self) -> CodeLayout:
        return CodeLayout.of(self.scheme, self.operand, self.shape, packed=True)

    def _natural_scale(self) -> Any:
        return natural_scale(self.scale, self.scheme, self.operand, self.shape, self.order)

    def _natural_codes(self) -> Any:
        layout = self._code_layout
        return natural_codes(self.codes, layout, self.operand, self.shape, self.order)

    def _order_on_host(self) -> NDArray[np.uint8] | None:
        if not self._code_layout.order:
            return None
        if self.order is None:
            batch, heads, tokens, _ = self.shape
            return natural_order(batch, heads, tokens)
        order: NDArray[np.uint8] = _to_host(self.order)
        return order


@lru_cache(_REMEMBERED)
def _kind_of(signature: Coded) -> object:
    return object()


def _on_host(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def _array_class(x: Any) -> Any:
    """Return the class of the arrays of NumPy or CuPy, whichever the given one is of."""
    if isinstance(x, np.ndarray):
        return np.ndarray
    return getattr(sys.modules.get("cupy"), "ndarray", ())


def _to_host(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else x.get()


def _of_library(like: Any, x: NDArray[np.float32]) -> Any:
    return x if isinstance(like, np.ndarray) else cupy_module().asarray(x)
