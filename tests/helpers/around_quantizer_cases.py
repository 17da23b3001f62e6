"""The kernels beside the quantizer, launched one by one on a GPU, real or simulated."""

from typing import Any, NamedTuple

import numpy as np

from cuattn.arrays.device import Device
from cuattn.arrays.view import Array
from cuattn.compile.chain import Chain
from cuattn.compile.launch import NULL, Buffers, Launch
from cuattn.operands.operand import DTYPES, array_operand
from cuattn.reference.layout import in_tokens, pad_head_dim
from cuattn.reference.rotation import rotate
from cuattn.reference.smoothing import block_means, products_with_means
from cuattn.specs.rotate import RotateSpec
from cuattn.specs.smoothing import KEY_PAD, BlockMeansSpec, DeltaSpec
from cuattn.specs.unpack import PIECE, UnpackSpec
from helpers.arrays_in_memory import MEMORY, as_float32, storage


class Place(NamedTuple):
    """A GPU, and the library whose arrays it reads: CuPy, or NumPy if it is simulated."""

    device: Device
    xp: Any

    def empty(self, shape, dtype):
        """Return memory full of what no kernel writes: NaN, or -1."""
        return self.xp.full(shape, np.nan if np.dtype(dtype).kind == "f" else -1, dtype)

    def put(self, x):
        """Copy a NumPy array there, its elements side by side; None stays None."""
        return None if x is None else self.xp.asarray(np.ascontiguousarray(x))

    def run(self, spec, ctas, values, **arrays):
        """Launch a kernel with numbers, and with arrays or None for its pointers."""
        buffers = Buffers(*arrays)
        numbers = {name: NULL if x is None else buffers[name] for name, x in arrays.items()}
        given = tuple(0 if x is None else address(x) for x in arrays.values())
        chain = Chain([Launch(spec, self.device, (ctas,), values | numbers)], buffers)
        chain(given, 0 if self.xp is np else self.xp.cuda.get_current_stream().ptr)


def address(x):
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr


def on_host(x):
    return x if isinstance(x, np.ndarray) else x.get()


def described(x, dtype):
    """Return what a spec and a parameter struct say of an array [batch, head, token, head_dim]."""
    strides = tuple(step // x.itemsize for step in x.strides)
    operand = array_operand(Array(x.shape, strides, dtype, (2, 0), address(x) % 16), "HND")
    values = {
        "stride_batch": strides[0],
        "stride_head": strides[1],
        "stride_token": strides[2],
        "num_heads": x.shape[1],
        "seqlen": x.shape[2],
        "head_dim": x.shape[3],
        # Lengths are those of the arrays.
        "cu_seqlens": NULL,
        "seqused": NULL,
        "total": 0,
    }
    return (DTYPES[dtype], pad_head_dim(x.shape[3]), operand.aligned), values


def run_block_means(place, x, dtype):
    kind, values = described(x, dtype)
    spec = BlockMeansSpec(*kind)
    batch, heads, tokens, head_dim = x.shape
    blocks = spec.blocks(tokens)
    mean = place.empty((batch, heads, blocks, head_dim), np.float32)
    if mean.size:
        values |= {"blocks": blocks}
        place.run(spec, batch * heads * blocks, values, x=x, mean=mean)
    return on_host(mean)


def run_deltas(place, mean, k, vector, dtype, factor, last_key=None):
    """Return what the kernel writes [batch, query head, block of Q, padded key], keys in order."""
    kind, values = described(k, dtype)
    spec = DeltaSpec(*kind)
    batch, heads, tokens = k.shape[:3]
    tiles, q_heads, blocks = spec.tiles(tokens), *mean.shape[1:3]
    delta = place.empty((batch, q_heads, blocks, tiles * spec.keys), np.float32)
    if delta.size:
        values |= {"rows": blocks * q_heads // heads, "tiles": tiles, "factor": factor, "bias": 0.0}
        values |= {"blocks": blocks, "last_key": tokens if last_key is None else last_key}
        arrays = {"x": k, "vector": vector, "mean": mean, "delta": delta}
        place.run(spec, batch * heads * tiles, values, **arrays)
    return in_tokens(on_host(delta))


def run_rotate(place, x, vector, dtype):
    kind, values = described(x, dtype)
    spec = RotateSpec(*kind)
    batch, heads, tokens = x.shape[:3]
    out = place.empty(x.shape, np.float32)
    if out.size:
        tiles = spec.tiles(tokens)
        values |= {"tiles": tiles}
        place.run(spec, batch * heads * tiles, values, x=x, vector=vector, out=out)
    return on_host(out)


def check_block_means(place, values, dtype, memory="contiguous"):
    stored = storage(values, dtype)
    got = run_block_means(place, MEMORY[memory](stored)(place.xp), dtype)
    x = as_float32(stored, dtype)
    want = block_means(x)
    assert got.shape == want.shape
    for block in range(want.shape[2]):
        rows = np.abs(x[:, :, block * 128 : (block + 1) * 128].astype(np.float64))
        # n float32 additions and a division: each rounds a partial sum of at most n * mean |x|.
        bound = rows.shape[2] * 2.0**-24 * rows.mean(axis=2) + np.spacing(np.abs(want[:, :, block]))
        assert (np.abs(got[:, :, block] - want[:, :, block]) <= bound).all()


def check_deltas(place, mean, k, dtype, *, vector=None, factor=0.125, memory="contiguous"):
    """Compare with float64, for means [batch, query head, block, head_dim] and keys."""
    stored = storage(k, dtype)
    x = MEMORY[memory](stored)(place.xp)
    got = run_deltas(place, place.put(mean), x, place.put(vector), dtype, factor)
    k = as_float32(stored, dtype)
    smoothed = k if vector is None else k - vector[:, :, None]
    size = np.abs(factor) * products_with_means(np.abs(mean), np.abs(smoothed), None)
    # Terms that are left out, the difference from the vector and the factor: 2^-22 of all products.
    # Tensor cores cut off each sum, of which there are three for 16 channels, by as much.
    bound = (1 + 3 * pad_head_dim(k.shape[3]) / 16) * 2.0**-22 * size
    if dtype == "float16":  # of whose numbers the smallest is 2^-24, and half a key is split
        ones = np.ones_like(smoothed)
        bound += 2.0**-24 * np.abs(factor) * products_with_means(np.abs(mean) + 1, ones, None)
    want = factor * products_with_means(mean, k, vector)
    tokens = k.shape[2]
    assert got.shape == (*want.shape[:3], -(-tokens // KEY_PAD) * KEY_PAD)
    assert (np.abs(got[..., :tokens] - want) <= bound).all()
    assert not got[..., tokens:].any()


def check_rotation(place, values, dtype, *, vector=None, memory="contiguous"):
    stored = storage(values, dtype)
    x = MEMORY[memory](stored)(place.xp)
    got = run_rotate(place, x, place.put(vector), dtype)
    x = as_float32(stored, dtype)
    want = rotate(x if vector is None else x - vector[:, :, None])
    np.testing.assert_array_equal(got, want)


def check_unpacked(place, codes):
    """Pack codes, a multiple of 16 from -8 to 7, and have them unpacked."""
    packed = (codes[::2] & 15 | codes[1::2] << 4).astype(np.int8)
    out = place.empty(codes.shape, np.int8)
    spec, pieces = UnpackSpec(), codes.size // PIECE
    place.run(
        spec, spec.ctas(codes.size), {"pieces": pieces}, packed=place.xp.asarray(packed), codes=out
    )
    np.testing.assert_array_equal(on_host(out), codes)
