"""Expressions in attention to a cache beside the GPU's other work: graphs, many CTAs, PyTorch."""

import numpy as np
import pytest
from helpers.gpu_cases import on_gpu, on_host
from helpers.kv_contents_cases import FORMATS, GPU, SOME, Filled, some_formats
from helpers.kv_graph_cases import replay_while_sequences_grow
from helpers.kv_score_cases import attend, eighths, in_library
from helpers.mod_cases import MODS, mod_options, with_arrays

from cuattn import MaskMod, ScoreMod
from cuattn.errors import ArgumentError, CompileError
from cuattn.kv import prefill
from cuattn.kv.rows import MANY_ROWS

pytestmark = pytest.mark.gpu

# Of two heads that four of Q share, so many queries are many.
MANY = MANY_ROWS // 2


def slopes_of(slopes):
    return ScoreMod(
        "score - slopes[head] * abs(own - kv)",
        arrays={"slopes": slopes},
        reference=lambda score, head, own, kv, slopes: score - slopes[head] * abs(own - kv),
    )


@some_formats
@pytest.mark.parametrize("name", ["hiding", "both"])
def test_runs_are_bit_identical(rng, options, name):
    filled = Filled(GPU, batch=5, heads=4, capacity=3000, **options)
    filled.append(rng, [3000, 1, 1700, 128, 640])
    given = in_library(GPU, MODS[name](rng, 5, 8, 3, 3000))
    q, _ = filled.draw(rng, 8, 3, "float16")

    def bits(**how):
        found = filled.cache.attend(q, return_lse=True, **given, **how)
        return tuple(on_host(x).tobytes() for x in found)

    assert len({bits() for _ in range(20)}) == 1
    assert len({bits(batch_invariant=True) for _ in range(5)}) == 1


def test_a_long_sequence_is_shared_by_all_multiprocessors(rng):
    filled = Filled(GPU, batch=1, heads=1, capacity=40000)
    for _ in range(4):
        filled.append(rng, 8192)
    filled.append(rng, 4001)
    for name in ("distances", "relative", "chunks"):
        attend(filled, rng, 8, 2, MODS[name](rng, 1, 8, 2, 36769))


def test_many_sequences(rng):
    lengths = rng.integers(0, 400, 200)
    filled = Filled(GPU, batch=200, heads=3).append(rng, lengths)
    attend(filled, rng, 12, 1, MODS["distances"](rng, 200, 12, 1, 400))


@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("of", SOME)
@pytest.mark.parametrize("queries", [1, MANY])
def test_a_graph_is_replayed_while_sequences_grow(cupy, rng, page_size, of, queries):
    """Lengths and what is in arrays may change; `own` moves on."""
    how = {"capacity": 340, "page_size": page_size, **FORMATS[of]}
    captured, eager = (Filled(GPU, **how) for _ in range(2))
    seed = rng.integers(2**32)
    for some in (captured, eager):
        if page_size:
            some.cache.reserve(340)
        some.append(np.random.default_rng(seed), [300, 5])
    q = captured.draw(rng, 4, queries, "float16")[0]
    k, v = (captured.draw(rng, 2, 1, "float16")[0] for _ in range(2))
    held = on_gpu(eighths(rng, 4), "float32")
    near = MaskMod("kv + 200 > own && kv <= own")
    given = {"score_mod": slopes_of(held), "mask_mod": near}

    def renew():
        held[...] = cupy.asarray(eighths(rng, 4))

    caches = captured.cache, eager.cache
    replay_while_sequences_grow(
        cupy, rng, caches, [300, 5], (q, k, v), 20, given=given, renew=renew
    )
    np.testing.assert_array_equal(captured.cache.lengths, [320, 25])


@pytest.mark.parametrize("name", ["distances", "linear", "relative", "both"])
def test_parts_make_no_difference(rng, monkeypatch, name):
    """Expressions count sequences and heads of the call in each of its parts."""
    mods = in_library(GPU, MODS[name](rng, 3, 4, MANY, 300))
    filled = Filled(GPU, batch=3).append(rng, [300, 128, 3])
    q, _ = filled.draw(rng, 4, MANY, "float16")
    wanted = [on_host(x) for x in filled.cache.attend(q, return_lse=True, **mods)]
    monkeypatch.setattr(prefill, "WORKSPACE", 1)
    filled.cache._memory._remembered.clear()
    for x, y in zip(filled.cache.attend(q, return_lse=True, **mods), wanted, strict=True):
        np.testing.assert_array_equal(on_host(x), y)


def test_expressions_do_not_meet_one_another(rng):
    filled = Filled(GPU, batch=2).append(rng, [200, 33])
    for _ in range(2):
        for by in (1, 2, 3):
            numbers = {"by": by}  # of which the text has its own
            mod = ScoreMod(f"score * {by}", numbers=numbers, reference=lambda score, by: by * score)
            attend(filled, rng, 4, 1, {"score_mod": mod})


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32"]
)
def test_arrays_of_every_type(rng, dtype):
    filled = Filled(GPU, batch=2).append(rng, [200, 33])
    x = rng.integers(0, 2, 4) if dtype == "bool" else rng.integers(0, 4, 4)
    q, _ = filled.draw(rng, 4, 2, "float16")
    found, wanted = (
        filled.cache.attend(q, score_mod=ScoreMod(text, arrays={"x": on_gpu(x, of)}))
        for text, of in (
            ("score + x[head] * (kv % 2)", dtype),
            ("score + kv % 2 * x[head]", "int32"),
        )
    )
    np.testing.assert_array_equal(on_host(found), on_host(wanted))


def test_tensors_of_pytorch(torch, rng):
    filled = Filled(GPU, batch=3).append(rng, [300, 128, 3])
    options = mod_options("distances", rng, (3, 4, 2), 300)
    q, _ = filled.draw(rng, 4, 2, "float16")
    wanted = filled.cache.attend(q, return_lse=True, **in_library(GPU, options))
    of_torch = with_arrays(options, lambda x: torch.from_numpy(np.asarray(x)).cuda())
    found = filled.cache.attend(torch.from_dlpack(q), return_lse=True, **of_torch)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x.cpu().numpy(), on_host(y))


@pytest.mark.parametrize("queries", [2, MANY])
def test_mistakes_launch_and_write_nothing(cupy, rng, queries):
    filled = Filled(GPU).append(rng, [40, 3])
    q, _ = filled.draw(rng, 4, queries, "float16")
    out = cupy.full_like(q, 7)
    with pytest.raises(CompileError, match=r"score_mod\(1\): error:"):
        filled.cache.attend(q, score_mod="score + nothing", out=out)
    mod = ScoreMod("score + x[0]", arrays={"x": np.zeros(1, np.float32)})
    with pytest.raises(ArgumentError, match=r"^score_mod\.x must be on GPU"):
        filled.cache.attend(q, score_mod=mod, out=out)
    mod = MaskMod("x[0] > 0", arrays={"x": out})
    with pytest.raises(ArgumentError, match=r"apart from that of mask_mod\.x"):
        filled.cache.attend(q, mask_mod=mod, out=out)
    assert (on_host(out) == 7).all()
