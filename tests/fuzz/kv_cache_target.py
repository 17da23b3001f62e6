"""Histories of a `KVCache`: any order of any of its operations, right and wrong.

Beside the cache goes a model of it, the tokens in float32. After every step lengths agree and each
page is free or counted; what is read is what was written, within the error of the format.
"""

import tempfile
from pathlib import Path

import numpy as np
from helpers.mod_cases import as_functions, with_arrays
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import cuattn
from cuattn.reference import exact

# Of one code and the range of its token, and of attention to such tokens.
STEP = {8: 1 / 254, 4: 1 / 14}
ATTEND = {8: 0.05, 4: 0.6}
SEEDS = st.integers(0, 2**32 - 1)


def run(place, count, configured, config, seed):
    del configured

    class Machine(History):
        pass

    Machine.place, Machine.count = place, staticmethod(count)
    import hypothesis

    hypothesis.seed(seed)(Machine)
    run_state_machine_as_test(Machine, settings=config)


def of_tokens(mask, length):
    """Return a mask of the last tokens as one of all of a sequence's."""
    columns = mask.shape[1]
    found = np.full((len(mask), length), mask.dtype == bool, mask.dtype)
    some = min(length, columns)
    found[:, length - some :] = mask[:, columns - some :]
    return found


class History(RuleBasedStateMachine):
    place, count = "cpu", staticmethod(lambda end: None)

    @initialize(
        batch=st.integers(1, 3),
        heads=st.integers(1, 2),
        head_dim=st.sampled_from([64, 96, 128, 256]),
        capacity=st.integers(1, 200),
        bits=st.sampled_from([(8, 8), (4, 4), (8, 4), (4, 8)]),
        group=st.sampled_from([0, 32, 64]),
        v_zero=st.booleans(),
        rotate=st.booleans(),
        nested=st.booleans(),
        fine=st.tuples(*[st.sampled_from([0, 16, 48])] * 2),
        smooth_k=st.booleans(),
        page_size=st.sampled_from([0, 16, 64]),
        spare=st.integers(-3, 3),
    )
    def make(
        self,
        batch,
        heads,
        head_dim,
        capacity,
        bits,
        group,
        v_zero,
        rotate,
        nested,
        fine,
        smooth_k,
        page_size,
        spare,
    ):
        k_bits, v_bits = bits
        self.k_bits, self.v_bits = bits
        options = {"k_bits": k_bits, "v_bits": v_bits, "smooth_k": smooth_k, "page_size": page_size}
        if 4 in bits and head_dim % (group or 1) == 0:
            options["group"] = group
        options["rotate"] = rotate
        if bits == (4, 4) and nested:
            options |= {"nested": True, "first": fine[0], "recent": fine[1]}
        elif v_bits == 4:
            options["v_zero"] = v_zero
        if page_size:
            options["num_pages"] = max(1, batch * -(-capacity // page_size) + spare)
        device = "cpu" if self.place == "cpu" else None
        self.cache = cuattn.KVCache(batch, heads, head_dim, capacity, device=device, **options)
        self.sizes, self.capacity = (batch, heads, head_dim), capacity
        self.tokens = [[np.zeros((heads, 0, head_dim), np.float32)] * 2 for _ in range(batch)]
        # Tokens that are left before some that are gone.
        self.gaps = [0] * batch
        self.page_size, self.first = page_size, options.get("first", 0)
        self.owns_pages = bool(page_size)

    def array(self, x):
        if self.place == "cpu":
            return x
        import cupy

        return cupy.asarray(x)

    def host(self, x):
        return x if isinstance(x, np.ndarray) else x.get()

    @property
    def lengths(self):
        return [k.shape[1] for k, _ in self.tokens]

    @rule(seed=SEEDS, most=st.integers(0, 70), with_counts=st.booleans())
    def append(self, seed, most, with_counts):
        rng = np.random.default_rng(seed)
        batch, heads, head_dim = self.sizes
        k, v = rng.standard_normal((2, batch, heads, most, head_dim)).astype(np.float16)
        k += np.float16(1.5)
        counts = rng.integers(0, most + 1, batch) if with_counts else np.full(batch, most)
        options = {"counts": counts} if with_counts else {}
        try:
            self.cache.append(self.array(k), self.array(v), **options)
        except cuattn.ArgumentError:
            after = np.array(self.lengths) + counts
            assert (after > self.capacity).any() or self.cache.page_table is not None
            self.count("refused")
            return
        self.count("append")
        for b, count in enumerate(counts):
            self.tokens[b] = [
                np.concatenate([old, new[b, :, :count].astype(np.float32)], axis=1)
                for old, new in zip(self.tokens[b], (k, v), strict=True)
            ]

    @rule(seed=SEEDS)
    def truncate(self, seed):
        rng = np.random.default_rng(seed)
        lengths = [int(rng.integers(0, n + 1)) for n in self.lengths]
        into_gap = any(
            0 < n <= gap and n < now
            for n, now, gap in zip(lengths, self.lengths, self.gaps, strict=True)
        )
        try:
            self.cache.truncate(lengths)
        except cuattn.ArgumentError:
            # Or pages lack that what was reserved has to have.
            assert into_gap or self.page_size
            self.count("refused")
            return
        assert not into_gap
        self.gaps = [gap if n else 0 for gap, n in zip(self.gaps, lengths, strict=True)]
        self.tokens = [
            [x[:, :n] for x in pair] for pair, n in zip(self.tokens, lengths, strict=True)
        ]
        self.count("truncate")

    @rule()
    def reset(self):
        self.cache.reset()
        self.tokens = [[x[:, :0] for x in pair] for pair in self.tokens]
        self.gaps = [0] * len(self.gaps)
        self.count("reset")

    @rule(src=st.integers(-1, 3), dst=st.integers(-1, 3))
    def fork(self, src, dst):
        batch = len(self.tokens)
        order = list(range(batch))
        if 0 <= dst < batch:
            order[dst] = src
        is_right = 0 <= src < batch and 0 <= dst < batch
        self.become(order, is_right, lambda: self.cache.fork(src, dst))

    @rule(seed=SEEDS, wrong=st.booleans())
    def reorder(self, seed, wrong):
        batch = len(self.tokens)
        order = np.random.default_rng(seed).integers(-int(wrong), batch, batch).tolist()
        is_right = all(i >= 0 for i in order)
        self.become(order, is_right, lambda: self.cache.reorder(order))

    def become(self, order, is_right, call):
        before = self.cache.page_table
        try:
            call()
        except (cuattn.ArgumentError, cuattn.UnsupportedError):
            # Reserved pages may lack for copies; those of the caller are not shared.
            assert not is_right or self.page_size
            np.testing.assert_array_equal(self.cache.page_table, before)
            self.count("refused")
            return
        assert is_right
        self.tokens = [self.tokens[i] for i in order]
        self.gaps = [self.gaps[i] for i in order]
        self.count("reorder")

    @rule(seed=SEEDS, sequence=st.integers(0, 3))
    def evict(self, seed, sequence):
        rng, size = np.random.default_rng(seed), self.page_size or 16
        length = self.lengths[sequence] if sequence < len(self.tokens) else 100
        places = [i for i in range(max(length - 1, 0) // size + 1) if rng.random() < 0.3]
        is_right = (
            self.owns_pages
            and sequence < len(self.tokens)
            and all(i * size >= self.first and (i + 1) * size < length for i in places)
        )
        try:
            self.cache.evict(sequence, places)
        except (cuattn.ArgumentError, cuattn.UnsupportedError):
            assert not is_right
            self.count("refused")
            return
        assert is_right
        self.count("evict")
        for i in reversed(places):
            some = np.r_[0 : i * size, (i + 1) * size : self.lengths[sequence]]
            self.tokens[sequence] = [x[:, some] for x in self.tokens[sequence]]
            gap = self.gaps[sequence]
            self.gaps[sequence] = max(i * size, gap - size if i * size < gap else gap)

    @rule(tokens=st.integers(-1, 260))
    def reserve(self, tokens):
        try:
            self.cache.reserve(tokens)
        except cuattn.ArgumentError:
            self.count("refused")
        else:
            assert 0 <= tokens <= self.capacity
            self.count("reserve")

    @rule(lengths=st.lists(st.integers(-3, 300), max_size=4))
    def truncate_wrongly(self, lengths):
        right = len(lengths) == len(self.lengths) and all(
            0 <= n <= most for n, most in zip(lengths, self.lengths, strict=True)
        )
        if right:
            return
        try:
            self.cache.truncate(lengths)
        except cuattn.ArgumentError:
            self.count("refused")
        else:
            raise AssertionError(f"truncate({lengths}) was taken")

    @rule(seed=SEEDS, queries=st.integers(1, 4), group=st.integers(1, 3), is_causal=st.booleans())
    def attend(self, seed, queries, group, is_causal):
        self.check_attend(np.random.default_rng(seed), queries, group, {"is_causal": is_causal})
        self.count("attend")

    @rule(
        seed=SEEDS,
        queries=st.integers(1, 4),
        group=st.integers(1, 3),
        is_causal=st.booleans(),
        window_size=st.tuples(st.integers(-1, 210), st.integers(-1, 4)),
        softcap=st.sampled_from([0.0, 3.0]),
        arrays=st.sets(st.sampled_from(["sinks", "alibi_slopes", "attn_mask"])),
        mods=st.sets(st.sampled_from(["score_mod", "mask_mod"])),
        columns=st.integers(0, 210),
    )
    def attend_with_options(
        self, seed, queries, group, is_causal, window_size, softcap, arrays, mods, columns
    ):
        rng = np.random.default_rng(seed)
        batch, heads = self.sizes[0], group * self.sizes[1]
        options = {"is_causal": is_causal, "window_size": window_size, "softcap": softcap}
        drawn = {
            "sinks": rng.standard_normal(heads),
            "alibi_slopes": rng.standard_normal((batch, heads)) / 8,
            "attn_mask": rng.standard_normal((queries, min(columns, self.capacity))),
        }
        drawn["attn_mask"][rng.random(drawn["attn_mask"].shape) < 0.3] = -np.inf
        options |= {name: drawn[name].astype(np.float32) for name in arrays}
        if "attn_mask" in arrays and seed % 2:
            options["attn_mask"] = options["attn_mask"] > -np.inf
        expressions = self.expressions(rng, heads)
        options |= {name: expressions[name] for name in mods}
        self.check_attend(rng, queries, group, options)
        self.count("attend with options")

    def expressions(self, rng, heads):
        score_mod = cuattn.ScoreMod(
            "score * by + bias[head] * (kv % 3)",
            arrays={"bias": rng.standard_normal(heads).astype(np.float32)},
            numbers={"by": float(rng.choice([0.5, 1.0]))},
            reference=lambda score, head, kv, bias, by: score * by + bias[head] * (kv % 3),
        )
        mask_mod = cuattn.MaskMod(
            "seen[kv] || kv == own",
            arrays={"seen": rng.random(self.capacity) < 0.5},
            reference=lambda kv, own, seen: seen[kv] | (kv == own),
        )
        return {"score_mod": score_mod, "mask_mod": mask_mod}

    def check_attend(self, rng, queries, group, options):
        batch, heads, head_dim = self.sizes
        q = rng.standard_normal((batch, group * heads, queries, head_dim)).astype(np.float16)
        given = {
            name: self.array(x) if isinstance(x, np.ndarray) else x
            for name, x in with_arrays(options, self.array).items()
        }
        counts = bool({"alibi_slopes", "score_mod", "mask_mod"} & options.keys())
        counts |= options.get("window_size", (-1, -1))[0] >= 0
        try:
            o, lse = self.cache.attend(self.array(q), return_lse=True, **given)
        except cuattn.UnsupportedError:
            assert counts
            assert any(self.gaps)
            return
        assert not (counts and any(self.gaps))
        o, lse = self.host(o).astype(np.float64), self.host(lse)
        assert np.isfinite(o).all()
        bound = ATTEND[min(self.k_bits, self.v_bits)]
        for b, (k, v) in enumerate(self.tokens):
            of_sequence = as_functions(options)
            if "alibi_slopes" in options:
                of_sequence["alibi_slopes"] = options["alibi_slopes"][b]
            if "attn_mask" in options:
                of_sequence["attn_mask"] = of_tokens(options["attn_mask"], k.shape[1])
            exact_o, exact_lse = exact.attention(
                *(x[None].astype(np.float64) for x in (q[b], k, v)), **of_sequence
            )
            np.testing.assert_array_equal(np.isneginf(lse[b]), np.isneginf(exact_lse[0]))
            if v.size:
                error = np.sqrt(np.mean((o[b] - exact_o[0]) ** 2))
                assert error <= bound * np.sqrt(np.mean(v**2)), error
            else:
                assert not o[b].any()

    @rule()
    def gather(self):
        k, v = (self.host(x) for x in self.cache.gather("float32"))
        for b, pair in enumerate(self.tokens):
            for found, given, bits in zip((k, v), pair, (self.k_bits, self.v_bits), strict=True):
                n = given.shape[1]
                if n:
                    # Smoothed keys less an offset have at most the range of those and of it.
                    room = 2 * STEP[bits] * (np.abs(given).max() * 2 + 1)
                    assert np.abs(found[b, :, :n] - given).max() <= room
                assert not found[b, :, n:].any()
        self.count("gather")

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.safetensors"
            self.cache.save(path)
            loaded = cuattn.KVCache.load(path, device="cpu" if self.place == "cpu" else None)
        for mine, other in zip(self.cache.codes(), loaded.codes(), strict=True):
            np.testing.assert_array_equal(mine.codes, other.codes)
            np.testing.assert_array_equal(mine.scale, other.scale)
        self.cache, self.owns_pages = loaded, bool(self.page_size)
        self.count("save and load")

    @precondition(lambda self: self.cache.page_table is not None)
    @rule(table=st.lists(st.lists(st.integers(-2, 40), max_size=5), max_size=3))
    def set_page_table_wrongly(self, table):
        before = self.cache.page_table
        try:
            self.cache.set_page_table(table)
        except cuattn.ArgumentError:
            np.testing.assert_array_equal(self.cache.page_table, before)
            self.count("refused")
        else:
            self.owns_pages = False
            self.count("set page table")

    @invariant()
    def agrees(self):
        if not hasattr(self, "cache"):
            return
        np.testing.assert_array_equal(self.cache.lengths, self.lengths)
        table = self.cache.page_table
        if table is not None:
            for row in table:
                used = row[row >= 0]
                assert len(used) == len(set(used.tolist()))
            pages = self.cache._memory.host_state.pages
            page, times = np.unique(table[table >= 0], return_counts=True)
            extra = np.zeros(len(page), int) if pages.extra is None else pages.extra[page]
            np.testing.assert_array_equal(extra, times - 1)
            if pages.is_own:
                count = self.cache._memory.geometry.num_pages
                free = [*pages.returned.tolist(), *range(pages.unused, count)]
                assert sorted([*page.tolist(), *free]) == list(range(count))
