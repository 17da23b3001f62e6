"""What a KV cache must hold after any calls: a plain model of its sequences, tokens and pages.

The model knows every token by its values, and which pages sequences share by the numbers of these;
what tokens are quantized to it takes from the reference.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import note
from hypothesis import strategies as st

import cuattn
from cuattn.kv_format import UNIT_TOKENS
from cuattn.reference.decode import decode
from cuattn.reference.kv_cache import kept, quantize_keys, quantize_nested, quantize_values
from cuattn.reference.kv_offsets import bare_tokens, offsets
from cuattn.reference.rotation import unrotate
from helpers.gpu_cases import assert_close, assert_same_lse
from helpers.kv_contents_cases import FORMATS, assert_same_codes, snapshot

HEADS, HEAD_DIM = 2, 64


class RefusedError(Exception):
    """What the cache has to refuse, with an exception of its own."""


@dataclass(frozen=True)
class Sequence:
    """The tokens of a sequence that are left, in their order.

    `fine` says which have all bits of nested codes, `bare` how many first ones no offset, `pages`
    where they are; `evicted` tokens are gone, and of those left `before` came before them.
    """

    k: np.ndarray
    v: np.ndarray
    vector: np.ndarray
    fine: tuple = ()
    bare: int = 0
    evicted: int = 0
    before: int = 0
    pages: tuple = ()

    @classmethod
    def empty(cls):
        nothing = np.zeros((HEADS, 0, HEAD_DIM), np.float32)
        return cls(nothing, nothing, np.zeros((HEADS, HEAD_DIM), np.float32))

    @property
    def length(self):
        return self.k.shape[1]

    def without(self, begin, end):
        """Return the sequence without some of its tokens."""
        some = np.r_[0:begin, end : self.length]
        fine = tuple(self.fine[i] for i in some)
        return replace(self, k=self.k[:, some], v=self.v[:, some], fine=fine)

    def shortened(self, length, page_size):
        if length == self.length:
            return self
        if length == 0:
            return Sequence.empty()
        if self.evicted and length <= self.before:
            raise RefusedError
        pages = self.pages[: -(-length // page_size)] if page_size else ()
        return replace(self.without(length, self.length), pages=pages)

    def evict(self, place, page_size):
        begin, end = place * page_size, (place + 1) * page_size
        return replace(
            self.without(begin, end),
            bare=self.bare - np.clip(self.bare - begin, 0, page_size),
            evicted=self.evicted + page_size,
            before=max(begin, self.before - page_size if begin < self.before else 0),
            pages=self.pages[:place] + self.pages[place + 1 :],
        )


@dataclass
class Model:
    """All sequences of a cache; a call that is to be refused raises, and changes nothing."""

    geometry: object
    smooth_k: bool
    sequences: list = field(default_factory=list)
    number: int = 0

    def __post_init__(self):
        self.sequences = [Sequence.empty()] * self.geometry.batch

    @property
    def lengths(self):
        return np.array([sequence.length for sequence in self.sequences])

    def append(self, k, v, counts):
        """Append the first tokens of values [batch, HEADS, token, HEAD_DIM]."""
        made = [self._rolled(x) if n else x for x, n in zip(self.sequences, counts, strict=True)]
        before = np.array([x.length for x in made])
        if (before + counts > self.geometry.capacity).any():
            raise RefusedError
        made = self._with_pages(made, counts)
        bare = bare_tokens(counts, before, [x.bare for x in made])
        grows = np.where([x.evicted > 0 for x in made], 0, bare)
        vectors = offsets(k, counts, before, np.stack([x.vector for x in made]), grows)
        self.sequences = [
            replace(
                x,
                k=np.concatenate([x.k, k[b, :, :n]], axis=1),
                v=np.concatenate([x.v, v[b, :, :n]], axis=1),
                vector=vectors[b] if self.smooth_k else x.vector,
                bare=int(bare[b]),
                fine=self._fine(x, n),
            )
            for b, (x, n) in enumerate(zip(made, counts, strict=True))
        ]

    def truncate(self, lengths):
        size = self.geometry.page_size
        self.sequences = [
            x.shortened(n, size) for x, n in zip(self.sequences, lengths, strict=True)
        ]

    def reorder(self, indices):
        if not all(0 <= i < len(self.sequences) for i in indices):
            raise RefusedError
        self.sequences = [self.sequences[i] for i in indices]

    def fork(self, src, dst):
        order = list(range(len(self.sequences) + 1))
        order[dst] = src
        if max(src, dst) >= len(self.sequences):
            raise RefusedError
        self.reorder(order[:-1])

    def evict(self, b, places):
        size = self.geometry.page_size
        if not size:
            raise RefusedError
        sequence = self.sequences[b]
        able = range(self.geometry.first_pages, max(sequence.length - 1, 0) // size)
        if not set(places) <= set(able) or len(set(places)) < len(places):
            raise RefusedError
        for place in sorted(places, reverse=True):
            sequence = sequence.evict(place, size)
        self.sequences[b] = sequence

    def _rolled(self, x):
        """Return a sequence without the pages before the window of its next token."""
        size, sinks = self.geometry.page_size, self.geometry.sink_pages
        while self.geometry.window:
            first_seen = x.length - (self.geometry.window - 1)
            end = (sinks + 1) * size
            if end > min(first_seen, x.length - 1):
                break
            x = x.evict(sinks, size)
        return x

    def _with_pages(self, sequences, counts):
        """Return sequences with pages of their own for more tokens."""
        size = self.geometry.page_size
        if not size:
            return sequences
        rows = [list(x.pages) for x in sequences]
        for b, (x, n) in enumerate(zip(sequences, counts, strict=True)):
            last = x.length // size
            others = {page for i, row in enumerate(rows) if i != b for page in row}
            if n and x.length % size and rows[b][last] in others:
                rows[b][last] = self._new_page()
            while n and len(rows[b]) * size < x.length + n:
                rows[b].append(self._new_page())
        if len({page for row in rows for page in row}) > self.geometry.num_pages:
            raise RefusedError
        return [replace(x, pages=tuple(row)) for x, row in zip(sequences, rows, strict=True)]

    def _new_page(self):
        self.number += 1
        return self.number

    def _fine(self, x, count):
        """Return which tokens have all bits when more come: of the first units and the newest."""
        begun = x.length % UNIT_TOKENS
        in_old_unit = min(-x.length % UNIT_TOKENS, count)
        fine = list(x.fine) + [x.fine[-1] if begun else True] * in_old_unit
        fine += [True] * (count - in_old_unit)
        oldest = -(-len(fine) // UNIT_TOKENS) - self.geometry.recent_units
        if count:
            coarse = min(oldest * UNIT_TOKENS, len(fine))
            for i in range(self.geometry.first_units * UNIT_TOKENS, coarse):
                fine[i] = False
        return tuple(fine)


class Pair:
    """A cache and the model of it; every call is made on both."""

    def __init__(self, place, batch, capacity, **options):
        self.place = place
        sizes = (batch, HEADS, HEAD_DIM, capacity)
        self.cache = cuattn.KVCache(*sizes, device=place.device, **options)
        smooth_k = options.get("smooth_k", True)
        self.model = Model(self.cache._memory.geometry, smooth_k)

    def both(self, name, *arguments, of_model=None, **options):
        """Make a call; what the model refuses the cache has to, and nothing may change."""
        try:
            getattr(self.model, name)(*(of_model or arguments))
        except RefusedError:
            before = snapshot(self.cache), self.cache.page_table, self.cache.positions
            try:
                getattr(self.cache, name)(*arguments, **options)
            except cuattn.CuattnError:
                assert snapshot(self.cache) == before[0]
                np.testing.assert_array_equal(self.cache.page_table, before[1])
                np.testing.assert_array_equal(self.cache.positions, before[2])
            else:
                raise AssertionError(f"{name}{arguments} was not refused") from None
        else:
            getattr(self.cache, name)(*arguments, **options)

    def append(self, rng, counts):
        counts = np.array(counts)
        shape = (len(counts), HEADS, max(int(counts.max()), 1), HEAD_DIM)
        bias = np.float32(2) * np.cos(np.arange(HEAD_DIM, dtype=np.float32))
        drawn = rng.standard_normal((2, *shape), dtype=np.float32) + bias
        arrays = [self.place.array(x) for x in drawn]
        values = [self.place.host(x).astype(np.float32) for x in arrays]
        of_model = (*values, counts)
        if rng.random() < 0.5:
            self.both("append", *arrays, of_model=of_model, counts=counts.tolist())
            return
        # The same end to end, in some order.
        order = rng.permutation(len(counts))
        packed = [
            self.place.array(np.concatenate([x[b, :, : counts[b]] for b in order], axis=1))
            for x in drawn
        ]
        packed = [x.swapaxes(0, 1) for x in packed]
        bounds = np.cumsum([0, *counts[order]]).tolist()
        given = {"cu_seqlens_k": bounds, "sequences": order.tolist()}
        self.both("append", *packed, of_model=of_model, **given)

    def attend(self, rng, queries):
        """Compare with attention to the model's tokens in float64, and with the reference's."""
        shape = (len(self.model.sequences), 2 * HEADS, queries, HEAD_DIM)
        array = self.place.array(queries_with_codes(rng, shape, self.cache.format.rotate))
        q = self.place.host(array).astype(np.float32)
        o, lse = (self.place.host(x) for x in self.cache.attend(array, return_lse=True))
        lengths = self.model.lengths
        k, v = (self.place.host(x) for x in self.cache.gather("float32"))
        wanted, wanted_lse = decode(q, *self.cache.codes(), lengths)
        for b, length in enumerate(lengths):
            assert_close(o[b].astype(np.float64), wanted[b], "float16")
            assert_same_lse(lse[b].astype(np.float64), wanted_lse[b])
            if length:
                plain = plain_attention(q[b], k[b, :, :length], v[b, :, :length])
                # Q has 8 bits.
                assert np.abs(o[b] - plain).max() < 0.1

    def codes(self, b):
        """Return K and V of a sequence as the reference quantizes them."""
        how, x = self.cache.format, self.model.sequences[b]
        vector = None if not self.model.smooth_k else self._vectors[b : b + 1]
        k, v, bare = x.k[None], x.v[None], np.array([x.bare])
        if not how.nested:
            return quantize_keys(k, how, vector, bare=bare), quantize_values(v, how)
        fine = np.array(x.fine, np.bool_)[None]
        return [kept(made, fine) for made in quantize_nested(k, v, how, vector, bare=bare)]

    def check(self):
        """Compare all that can be seen of the cache with the model, codes bit for bit."""
        cache, model = self.cache, self.model
        np.testing.assert_array_equal(cache.lengths, model.lengths)
        evicted = [x.evicted for x in model.sequences]
        np.testing.assert_array_equal(cache.positions, model.lengths + evicted)
        if cache.page_table is not None:
            rows = [x.pages for x in model.sequences]
            assert renumbered(cache.page_table) == renumbered(rows)
        found_k, found_v = cache.codes()
        self._vectors = found_k.vector
        for b, x in enumerate(model.sequences):
            if not x.length:
                continue
            if model.smooth_k:
                # The mean of a GPU adds in another order.
                np.testing.assert_allclose(found_k.vector[b], x.vector, atol=2e-5)
                assert found_k.bare[b] == x.bare
            for found, wanted in zip((found_k, found_v), self.codes(b), strict=True):
                assert_same_codes(found, b, wanted, x.length)


def queries_with_codes(rng, shape, rotated):
    """Return queries that are whole steps of their scale, so that none can be rounded two ways.

    Where few tokens are seen, another code of Q changes the output by more than float sums do.
    """
    codes = rng.integers(-63, 64, shape).astype(np.float64)
    codes[..., :1] = 127
    q = np.ldexp(unrotate(codes) if rotated else codes, -5)
    assert (q.astype(np.float16) == q).all()
    return q.astype(np.float32)


def renumbered(rows):
    """Return rows of pages with the pages numbered as they are first met, without -1."""
    numbers = {}
    return [[numbers.setdefault(page, len(numbers)) for page in row if page != -1] for row in rows]


def plain_attention(q, k, v):
    """Attend causally, the last query beside the last token, in float64; [head, row, channel]."""
    n, rows = k.shape[1], q.shape[1]
    k, v = (x.astype(np.float64).repeat(len(q) // len(x), axis=0) for x in (k, v))
    s = q.astype(np.float64) @ k.swapaxes(1, 2) / np.sqrt(HEAD_DIM)
    sees = np.arange(n) <= n - rows + np.arange(rows)[:, None]
    s = np.where(sees, s, -np.inf)
    top = s.max(axis=2, keepdims=True)
    p = np.where(sees, np.exp(s - np.where(np.isfinite(top), top, 0)), 0)
    return p @ v / np.maximum(p.sum(axis=2, keepdims=True), 1e-300)


SOME = ("8 bits", "4 bits", "nested, few of 8 bits", "groups and zero points")
CALLS = ("append", "append", "token", "token", "truncate", "fork", "fork", "reorder", "evict")


@st.composite
def histories(draw):
    """What a cache may be asked for, with numbers that each call makes of it what it needs."""
    page_size = draw(st.sampled_from([0, 16, 16, 32]))
    number = st.integers(0, 99)
    turn = st.tuples(st.sampled_from([*CALLS, "attend", "copy"]), st.tuples(*[number] * 4))
    return {
        "batch": draw(st.integers(1, 4)),
        "format": draw(st.sampled_from(SOME)),
        "smooth_k": draw(st.booleans()),
        "page_size": page_size,
        "pages": draw(st.integers(4, 24)) if page_size else None,
        "window": draw(st.sampled_from([None, None, 1, 20, 40])) if page_size else None,
        "sink_tokens": draw(st.sampled_from([0, 0, 5, 33])),
        "begin": draw(st.tuples(*[st.integers(0, 120)] * 4)),
        "turns": draw(st.lists(turn, min_size=1, max_size=14)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def live(place, history):
    """Go through a history on a cache and its model."""
    note(history)
    rng = np.random.default_rng(history["seed"])
    batch, page_size = history["batch"], history["page_size"]
    options = FORMATS[history["format"]] | {"smooth_k": history["smooth_k"]}
    if page_size:
        options |= {"page_size": page_size, "num_pages": history["pages"]}
    if history["window"]:
        options |= {"window": history["window"], "sink_tokens": history["sink_tokens"]}
    pair = Pair(place, batch, 200, **options)
    pair.append(rng, history["begin"][:batch])
    for call, numbers in history["turns"]:
        model = pair.model
        if call == "append":
            pair.append(rng, [n % 70 if n % 3 else 0 for n in numbers[:batch]])
        elif call == "token":
            pair.append(rng, [min(n, 1) for n in numbers[:batch]])
        elif call == "truncate":
            fewer = [n % 40 if n < 50 else 0 for n in numbers[:batch]]
            pair.both("truncate", np.maximum(model.lengths - fewer, 0).tolist())
        elif call == "fork":
            pair.both("fork", *(n % (batch + (n > 90)) for n in numbers[:2]))
        elif call == "reorder":
            pair.both("reorder", [n % (batch + (n > 95)) for n in numbers[:batch]])
        elif call == "evict":
            b = numbers[0] % batch
            places = max(int(model.lengths[b]) - 1, 0) // (page_size or 16)
            chosen = [place for place in range(places + 1) if numbers[1] >> (place % 6) & 1]
            pair.both("evict", b, chosen[: -1 if numbers[2] < 80 else None])
        elif call == "copy":
            pair.cache = pair.cache.copy()
        else:
            pair.check()
            pair.attend(rng, 1 + numbers[0] % 3)
    pair.check()
    pair.attend(rng, 1)
