"""Appending to a KV cache without a GPU: its specs, its checks, and where its kernels look."""

import re

import numpy as np
import pytest

from cuattn.arrays.view import Array
from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.errors import ArgumentError
from cuattn.kv.append_call import GIVEN, prepare_append
from cuattn.kv.append_spec import AppendSpec, OffsetSpec
from cuattn.kv.fine import fine_tokens, joined, read_fine
from cuattn.kv.geometry import KVGeometry
from cuattn.kv.units import Tokens, unpack_units
from cuattn.kv_format import KV_HEAD_DIMS, UNIT_TOKENS, KVFormat
from cuattn.reference.kv_cache import kept, quantize_keys, quantize_nested, quantize_values
from cuattn.reference.kv_offsets import offsets
from cuattn.specs.attention import Type

pytest.importorskip("cupy")
from helpers.spec_structs import begins_with_its_fields
from simulated_gpu import garbage

FORMATS = (
    KVFormat(64),
    KVFormat(96, 8, 4, v_zero=True, rotate=True),
    KVFormat(64, 4, 4, 32, v_zero=True),
    KVFormat(64, 4, 4, 64, rotate=True, nested=True),
)
SPECS = (AppendSpec.of(FORMATS[2], Type.bf16, aligned=True), OffsetSpec(Type.fp32, 64, True))
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
every_format = pytest.mark.parametrize("kv_format", FORMATS, ids=str)
PLACES = {"one piece": 0, "pages of 16": 16, "pages of 32": 32}


@every_spec
def test_literal_names_every_member_in_order(spec):
    begins_with_its_fields(spec, "kv/kv_spec.cuh")


@every_spec
def test_params_can_be_read(spec):
    assert record(spec.params, spec.params_file).itemsize % 8 == 0
    assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])


@pytest.mark.parametrize("head_dim", [*KV_HEAD_DIMS, 16, 80, 112])
@pytest.mark.parametrize("element", [Type.fp16, Type.fp32])
def test_no_kernel_asks_for_more_than_48_kib(head_dim, element):
    assert AppendSpec.of(KVFormat(head_dim), element, aligned=True).smem_bytes <= 48 * 1024
    assert OffsetSpec(element, head_dim, aligned=True).smem_bytes <= 48 * 1024


def test_pieces_suffice_wherever_tokens_begin():
    units_of_cta = AppendSpec.num_threads // 64
    for tokens in range(1, 100):
        units = [(start + tokens - 1) // UNIT_TOKENS + 1 for start in range(UNIT_TOKENS)]
        assert AppendSpec.pieces(tokens) == -(-max(units) // units_of_cta)


class Cache:
    """The arrays of a cache, and the tokens that are in it as the reference quantizes them."""

    xp = np
    sent = to_host = staticmethod(np.asarray)

    def __init__(self, kv_format, page_size=0, smooth=True, batch=3, heads=2, capacity=50):
        pages_per_sequence = -(-capacity // page_size) if page_size else 1
        pages = batch * pages_per_sequence + 1
        recent = 16 if kv_format.nested else 0
        self.geometry = KVGeometry(kv_format, batch, heads, capacity, page_size, pages, 0, recent)
        self.fine = self.coarse = None
        if kv_format.nested:
            self.fine = garbage(self.geometry.fine_shape, np.uint8)
            self.coarse = np.zeros(batch, np.int32)
        self.units = garbage(self.geometry.units_shape, np.uint8)
        self.lengths = np.zeros(batch, np.int32)
        self.limits = np.full(batch, capacity, np.int32)
        self.arrivals, self.refused = np.zeros(1, np.uint32), np.zeros(1, np.int32)
        table = np.random.default_rng(0).permutation(self.geometry.num_pages).astype(np.int32)
        self.pages = None
        if page_size:
            self.pages = table[: batch * pages_per_sequence].reshape(batch, -1).copy()
        shape = (batch, heads, kv_format.head_dim)
        self.k_offset = garbage(shape, np.float32) if smooth else None
        self.bare = np.zeros(batch, np.int32) if smooth else None
        self.contents = [[] for _ in range(batch)]

    def append(self, k, v, counts=None, layout="HND", fixes_offsets=False):
        """Append and return what was prepared; k and v in the caller's layout."""
        call = prepare_append(self.geometry, look(k), look(v), layout, fixes_offsets)
        own = {name: getattr(self, name) for name in GIVEN if hasattr(self, name)}
        given = {**own, "k": k, "v": v, "counts": counts}
        addresses = tuple(0 if x is None else x.ctypes.data for x in map(given.get, GIVEN))
        call.launches(addresses, 0)
        return call

    def tokens(self, b):
        """Return K and V of a sequence as they lie in memory."""
        units = self.units[b]
        if self.pages is not None:
            units = self.units[self.pages[b]].swapaxes(0, 1)
            units = units.reshape(units.shape[0], -1, units.shape[-1])
        upper = unpack_units(units[None], self.geometry.kv_format)
        if self.fine is None:
            return upper
        length = int(self.lengths[b])
        units = -(-length // UNIT_TOKENS) * UNIT_TOKENS
        lower = unpack_units(read_fine(self, b, length), self.geometry.kv_format)
        fine = fine_tokens(self, b, length)
        return [
            joined(Tokens(x.codes[:, :, :units], x.scale[:, :, :units]), y, fine)
            for x, y in zip(upper, lower, strict=True)
        ]


def look(x):
    strides = tuple(step // x.itemsize for step in x.strides)
    return Array(x.shape, strides, x.dtype.name, (2, 0), x.ctypes.data % 16)


def new_tokens(rng, cache, n, layout="HND", dtype=np.float16):
    geometry = cache.geometry
    shape = (geometry.batch, geometry.num_kv_heads, n, geometry.kv_format.head_dim)
    pair = rng.standard_normal((2, *shape)).astype(dtype) + np.arange(shape[3], dtype=dtype)
    return list(pair if layout == "HND" else np.ascontiguousarray(pair.swapaxes(2, 3)))


def check_tokens(cache, b, start, k, v):
    """Hold what lies in memory from a token on to the tokens that were appended."""
    vector = None if cache.k_offset is None else cache.k_offset[b : b + 1]
    kv_format = cache.geometry.kv_format
    k, v = k[b : b + 1], v[b : b + 1]
    bare = None if vector is None else cache.bare[b : b + 1]
    if kv_format.nested:
        fine = fine_tokens(cache, b, int(cache.lengths[b]))[start:][None, : k.shape[2]]
        wanted = [kept(x, fine) for x in quantize_nested(k, v, kv_format, vector, [start], bare)]
    else:
        wanted = [
            quantize_keys(k, kv_format, vector, [start], bare),
            quantize_values(v, kv_format),
        ]
    for found, x in zip(cache.tokens(b), wanted, strict=True):
        where = slice(start, start + k.shape[2])
        np.testing.assert_array_equal(found.codes[:, :, where], x.codes)
        np.testing.assert_array_equal(found.scale[:, :, where], x.scale)
        if x.zero is not None:
            np.testing.assert_array_equal(found.zero[:, :, where], x.zero)


@every_format
@pytest.mark.parametrize("page_size", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_call_reaches_the_kernels_as_meant(gpu, rng, kv_format, page_size, layout, dtype):
    cache = Cache(kv_format, page_size)
    steps = [(20, np.array([20, 0, 7], np.int32)), (1, None), (17, np.array([3, 17, 17], np.int32))]
    for n, counts in steps:
        k, v = new_tokens(rng, cache, n, layout, dtype)
        before, mean = cache.lengths.copy(), cache.k_offset.copy()
        coarse = None if cache.coarse is None else cache.coarse.copy()
        cache.append(k, v, counts, layout, fixes_offsets=True)
        np.testing.assert_array_equal(cache.lengths, before + (n if counts is None else counts))
        if coarse is not None:
            coarse = cache.geometry.coarse_after(coarse, before, cache.lengths)
            np.testing.assert_array_equal(cache.coarse, coarse)
        if layout == "NHD":
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        for b, start in enumerate(before):
            new = slice(0, cache.lengths[b] - start)
            if new.stop == 0:
                continue
            one = slice(b, b + 1)
            vector = offsets(k[one, :, new], None, [start], mean[one], cache.bare[one])[0]
            np.testing.assert_array_equal(cache.k_offset[b], vector)
            check_tokens(cache, b, start, k[:, :, new], v[:, :, new])
    assert gpu.launched == ["offsets", "append"] * 3


def test_strides_are_followed(gpu, rng):
    cache = Cache(FORMATS[0], smooth=False)
    k, v = new_tokens(rng, cache, 12)
    apart = np.zeros((*k.shape[:3], 80), np.float16)
    apart[..., 3:67] = k
    both = [apart[..., 3:67], v[:, :, ::-1]]
    cache.append(*both)
    for b in range(3):
        check_tokens(cache, b, 0, *both)
    assert [spec.aligned for spec in gpu.specs] == [False]


def test_nothing_is_written_if_a_sequence_lacks_room(gpu, rng):
    cache = Cache(FORMATS[0], smooth=False)
    cache.append(*new_tokens(rng, cache, 40))
    before = cache.units.copy()
    for counts in ([1, 11, 1], [-1, 1, 1], [1, 1, 13]):
        cache.refused[:] = 0
        cache.append(*new_tokens(rng, cache, 12), np.array(counts, np.int32))
        assert cache.refused[0]
        np.testing.assert_array_equal(cache.units, before)
        np.testing.assert_array_equal(cache.lengths, 40)


def test_other_tokens_are_not_read(gpu, rng):
    cache = Cache(FORMATS[0])
    k, v = new_tokens(rng, cache, 9)
    k[:, :, 5:] = np.nan
    cache.append(k, v, np.full(3, 5, np.int32), fixes_offsets=True)
    assert np.isfinite(cache.k_offset).all()


def test_no_tokens_are_no_launch(gpu, rng):
    cache = Cache(FORMATS[0])
    call = cache.append(*new_tokens(rng, cache, 0), fixes_offsets=True)
    assert (len(call.launches), call.tokens) == (0, 0)


def test_wrong_tokens_are_named(gpu, rng):
    cache = Cache(FORMATS[0])
    k, v = new_tokens(rng, cache, 6)
    wrong = [
        ("layout", k, v, "NDH"),
        (r"k\.shape", k, v, "NHD"),
        (r"k\.shape", k[0], v, "HND"),
        (r"k\.shape", k[:, :1], v, "HND"),
        (r"k\.shape", k[..., :32], v[..., :32], "HND"),
        (r"k\.dtype", k.astype(int), v, "HND"),
        (r"v\.shape", k, v[:, :, :5], "HND"),
        (r"v\.dtype", k, v.astype(np.float32), "HND"),
    ]
    for name, bad_k, bad_v, layout in wrong:
        with pytest.raises(ArgumentError, match=f"^{name} must be"):
            cache.append(bad_k, bad_v, layout=layout)
    assert gpu.launched == []
