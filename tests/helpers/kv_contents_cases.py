"""What the tests of the KV cache share: where it lies, what it must hold, what it must return."""

import os
from typing import NamedTuple

import numpy as np
import pytest

import cuattn
from cuattn.arrays.device import current_device, gpu_status, target
from cuattn.compile.jit import precompile
from cuattn.kv.append_spec import AppendSpec, OffsetSpec
from cuattn.kv.options import geometry_of
from cuattn.kv.spec import decode_spec
from cuattn.kv_format import UNIT_TOKENS
from cuattn.operands.operand import DTYPES as TYPES
from cuattn.reference.decode import decode
from cuattn.reference.kv_cache import (
    fine_units,
    kept,
    quantize_keys,
    quantize_nested,
    quantize_values,
)
from cuattn.reference.kv_offsets import bare_tokens, offsets
from helpers.gpu_cases import assert_close, assert_same_lse, on_gpu, on_host

DTYPES = ("float16", "bfloat16", "float32")

FORMATS = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits for all tokens": {"bits": 4, "nested": False},
    "nested, few of 8 bits": {"bits": 4, "first": 0, "recent": 16, "group": 0, "rotate": False},
    "groups of 32": {"bits": 4, "group": 32},
    "groups of 64": {"bits": 4, "group": 64},
    "zero points": {"bits": 4, "v_zero": True},
    "groups and zero points": {"bits": 4, "group": 32, "v_zero": True},
    "K of 8, V of 4": {"k_bits": 8, "v_bits": 4, "group": 32},
    "K of 4, V of 8": {"k_bits": 4, "v_bits": 8, "rotate": False},
}
every_format = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
# Those that differ most, where there is not the time for all.
SOME = {name: FORMATS[name] for name in ("8 bits", "groups and zero points", "4 bits")}
some_formats = pytest.mark.parametrize("options", SOME.values(), ids=SOME)


# Queries times heads that share one of K and V: a CTA of every size.
ROWS = (8, 16, 32)


@pytest.fixture(scope="session", autouse=True)
def _kernels():
    """Compile what most of the tests need on all cores, as `gpu_cases._kernels` does."""
    if "PYTEST_XDIST_WORKER" not in os.environ and gpu_status()[0] == "ok":
        arch = current_device().arch
        precompile(list(_specs(target(arch))), [arch])


def _specs(facts):
    """Yield the kernels of all formats in float16, and of some formats in all types."""
    for name, options in FORMATS.items():
        for head_dim in (64, 96, 128, 256) if name in SOME else (64, 128):
            some = name in SOME and head_dim == 64
            for dtype in DTYPES if some else ("float16",):
                element, kv_format = TYPES[dtype], format_of(head_dim, options)
                yield OffsetSpec(element, head_dim, True)
                for single in (False, True):
                    yield AppendSpec.of(kv_format, element, aligned=True, single=single)
                for rows in ROWS:
                    yield decode_spec(kv_format, element, rows, facts)


def format_of(head_dim, options):
    """Return the format of a cache with some options."""
    return geometry_of(1, 1, head_dim, 1, **options).kv_format


class Place(NamedTuple):
    """The memory of a computer or of its GPU."""

    device: str | None

    @property
    def xp(self):
        """NumPy or CuPy."""
        return pytest.importorskip("cupy") if self.device is None else np

    def array(self, x, dtype="float16"):
        """Return an array of NumPy or CuPy in a type."""
        if self.device is None:
            return on_gpu(x, dtype)
        name = dtype if dtype != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16
        return x.astype(name)

    def host(self, x):
        """Return its values in NumPy's memory, as float32 if it is bfloat16."""
        if self.device is None:
            return on_host(x)
        return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


HOST, GPU = Place("cpu"), Place(None)
every_place = pytest.mark.parametrize(
    "place", [HOST, pytest.param(GPU, marks=pytest.mark.gpu)], ids=["host", "gpu"]
)


class Filled:
    """A cache, and all that it was given, on the host.

    Keys have a bias of channels, which smoothing takes, and values a mean, for zero points.
    """

    def __init__(self, place, *, batch=2, heads=2, head_dim=64, capacity=512, **options):
        self.place = place
        self.sizes = (batch, heads, head_dim)
        self.cache = cuattn.KVCache(
            batch, heads, head_dim, capacity, device=place.device, **options
        )
        empty = np.zeros((heads, 0, head_dim), np.float32)
        self.k, self.v = ([empty] * batch for _ in range(2))
        self.vector = np.zeros((batch, heads, head_dim), np.float32)
        self.bare = np.zeros(batch, np.int64)
        self.coarse = np.zeros(batch, np.int64)

    @property
    def lengths(self):
        return np.array([k.shape[1] for k in self.k])

    def draw(self, rng, heads, tokens, dtype, layout="HND"):
        """Return an array of normal numbers, and its values on the host."""
        batch, _, head_dim = self.sizes
        x = rng.standard_normal((batch, heads, tokens, head_dim), dtype=np.float32)
        return self.given(x, dtype, layout)

    def given(self, x, dtype, layout="HND"):
        array = self.place.array(x, dtype)
        values = self.place.host(array).astype(np.float32)
        return (array if layout == "HND" else array.swapaxes(1, 2)), values

    def append(self, rng, counts, *, dtype="float16", layout="HND", spare=0):
        """Append to each sequence as many tokens as `counts` says; `spare` more are not real."""
        batch, heads, head_dim = self.sizes
        counts = np.broadcast_to(np.asarray(counts), (batch,))
        shape = (batch, heads, int(counts.max()) + spare, head_dim)
        bias = np.float32(2) * np.cos(np.arange(head_dim, dtype=np.float32))
        drawn_k = rng.standard_normal(shape, dtype=np.float32) + bias
        drawn_v = rng.standard_normal(shape, dtype=np.float32) + np.float32(0.5)
        for b, count in enumerate(counts):
            # Whoever reads what is not real spreads it.
            drawn_k[b, :, count:], drawn_v[b, :, count:] = np.nan, np.inf
        (k, k_values), (v, v_values) = (self.given(x, dtype, layout) for x in (drawn_k, drawn_v))
        self.cache.append(k, v, counts=counts.copy(), layout=layout)
        self.remember(k_values, v_values, counts)
        return self

    def remember(self, k, v, counts):
        """Note what the cache has been given."""
        counts = np.broadcast_to(counts, len(self.k))
        self.bare = bare_tokens(counts, self.lengths, self.bare)
        self.vector = offsets(k, counts, self.lengths, self.vector, self.bare)
        # A unit keeps 8 bits until the one comes that is as many later as there are places.
        places = self.cache._memory.geometry.recent_units
        units, after = (-(-n // UNIT_TOKENS) for n in (self.lengths, self.lengths + counts))
        self.coarse = np.maximum(np.minimum(self.coarse, units), after - places)
        for b, count in enumerate(counts):
            self.k[b] = np.concatenate([self.k[b], k[b, :, :count]], axis=1)
            self.v[b] = np.concatenate([self.v[b], v[b, :, :count]], axis=1)

    def tokens(self, dtype="float16"):
        """Return K and V of all tokens as arrays; what is beyond a length is NaN."""
        batch, heads, head_dim = self.sizes
        padded = np.full((2, batch, heads, self.lengths.max(), head_dim), np.nan, np.float32)
        for i, some in enumerate((self.k, self.v)):
            for b, x in enumerate(some):
                padded[i, b, :, : x.shape[1]] = x
        return [self.place.array(x, dtype) for x in padded]

    def truncate(self, lengths):
        self.cache.truncate(lengths)
        for some in (self.k, self.v):
            some[:] = [x[:, :n] for x, n in zip(some, lengths, strict=True)]

    def check_contents(self):
        """Compare codes, scales and zero points with the reference's of all tokens, bit for bit."""
        np.testing.assert_array_equal(self.cache.lengths, self.lengths)
        found_k, found_v = self.cache.codes()
        how = self.cache.format
        if found_k.vector is not None:
            # The mean of a GPU adds in another order: 512 numbers of up to 8 in float32.
            seen = self.lengths > 0
            np.testing.assert_allclose(found_k.vector[seen], self.vector[seen], atol=2e-5)
        for b, n in enumerate(self.lengths):
            vector = None if found_k.vector is None else found_k.vector[b : b + 1]
            if vector is not None and n:
                assert found_k.bare[b] == self.bare[b]
            bare = self.bare[b : b + 1]
            k, v = self.k[b][None], self.v[b][None]
            if how.nested:
                first = self.cache._memory.geometry.first_units
                fine = fine_units(n, self.coarse[b], first).repeat(UNIT_TOKENS)[None, :n]
                wanted = [kept(x, fine) for x in quantize_nested(k, v, how, vector, bare=bare)]
            else:
                wanted = [quantize_keys(k, how, vector, bare=bare), quantize_values(v, how)]
            for found, of_tokens in zip((found_k, found_v), wanted, strict=True):
                assert_same_codes(found, b, of_tokens, n)

    def attend(self, rng, q_heads, queries, *, dtype="float16", layout="HND", **options):
        """Attend with new queries and compare with the reference on the cache's own codes."""
        q, values = self.draw(rng, q_heads, queries, dtype, layout)
        o, lse = self.cache.attend(q, layout=layout, return_lse=True, **options)
        assert o.dtype == q.dtype
        assert o.shape == q.shape
        assert lse.dtype == np.float32
        o = self.place.host(o).swapaxes(1, 2) if layout == "NHD" else self.place.host(o)
        self.check_output(values, o, self.place.host(lse), dtype, **options)
        return q, o

    def check_output(self, q, o, lse, dtype="float16", **options):
        """Compare an output with the reference's, each sequence for itself."""
        options = {key: x for key, x in options.items() if key in ("is_causal", "scale")}
        wanted, wanted_lse = decode(q, *self.cache.codes(), self.lengths, **options)
        for b in range(self.sizes[0]):
            assert_close(o[b].astype(np.float64), wanted[b], dtype)
            assert_same_lse(lse[b].astype(np.float64), wanted_lse[b])


def assert_same_codes(found, b, wanted, n):
    """Compare the first `n` tokens of sequence `b`."""
    np.testing.assert_array_equal(found.codes[b, :, :n], wanted.codes[0])
    np.testing.assert_array_equal(found.scale[b, :, :n], wanted.scale[0])
    assert (found.zero is None) == (wanted.zero is None)
    if found.zero is not None:
        np.testing.assert_array_equal(found.zero[b, :, :n], wanted.zero[0])


def snapshot(cache):
    """Return all that a cache holds, as bytes."""
    lengths = cache.lengths
    held = [lengths.tobytes()]
    for x in cache.codes():
        for b, n in enumerate(lengths):
            parts = [x.codes, x.scale] + ([x.zero] if x.zero is not None else [])
            held += [part[b, :, :n].tobytes() for part in parts]
        held.append(b"" if x.vector is None else x.vector[lengths > 0].tobytes())
    return held


def random_pages(rng, cache):
    """Give a cache all of its pages in random order."""
    table = np.asarray(cache.page_table)
    order = rng.permutation(table.size).astype(np.int32)
    cache.set_page_table(order.reshape(table.shape))
