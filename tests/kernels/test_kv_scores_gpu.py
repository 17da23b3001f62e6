"""Options of decoding beside the GPU's other work: graphs, many CTAs, arrays of PyTorch."""

import numpy as np
import pytest
from helpers.gpu_cases import on_host
from helpers.kv_contents_cases import (
    FORMATS,
    GPU,
    SOME,
    Filled,
    _kernels,  # noqa: F401
    some_formats,
)
from helpers.kv_graph_cases import replay_while_sequences_grow
from helpers.kv_score_cases import (
    SETS,
    _feature_kernels,  # noqa: F401
    attend,
    eighths,
    in_library,
)

pytestmark = pytest.mark.gpu

# Those that differ most in what they read.
every_mixture = pytest.mark.parametrize("name", ["sliding", "hidden", "everything"])


@some_formats
@every_mixture
def test_runs_are_bit_identical(cupy, rng, options, name):
    filled = Filled(GPU, batch=5, heads=4, capacity=3000, **options)
    filled.append(rng, [3000, 1, 1700, 128, 640])
    given = in_library(GPU, SETS[name](rng, 5, 8, 3))
    q, _ = filled.draw(rng, 8, 3, "float16")

    def bits():
        return tuple(on_host(x).tobytes() for x in filled.cache.attend(q, return_lse=True, **given))

    assert len({bits() for _ in range(20)}) == 1


def test_a_long_sequence_is_shared_by_all_multiprocessors(rng):
    filled = Filled(GPU, batch=1, heads=1, capacity=70000)
    for _ in range(8):
        filled.append(rng, 8192)
    filled.append(rng, 4001)
    heads, queries = 8, 2
    sinks = eighths(rng, heads, most=12)
    mask = np.where(rng.random((queries, 69537)) < 0.5, -np.inf, eighths(rng, (queries, 69537)))
    for options in (
        {"window_size": (30000, 0), "sinks": sinks},
        {"softcap": 5.0, "sinks": sinks},
        {"attn_mask": mask.astype(np.float32)},
        {"alibi_slopes": 2.0 ** -np.arange(1, heads + 1, dtype=np.float32)},
    ):
        attend(filled, rng, heads, queries, options)


@every_mixture
def test_many_sequences(rng, name):
    lengths = rng.integers(0, 400, 200)
    filled = Filled(GPU, batch=200, heads=3).append(rng, lengths)
    attend(filled, rng, 12, 1, SETS[name](rng, 200, 12, 1))


@every_mixture
@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("of", SOME)
def test_a_graph_is_replayed_while_sequences_grow(cupy, rng, name, page_size, of):
    """Lengths and what is in arrays may change; the window slides, and masks stay at the end."""
    how = {"capacity": 400, "page_size": page_size, **FORMATS[of]}
    captured, eager = (Filled(GPU, **how) for _ in range(2))
    seed = rng.integers(2**32)
    for some in (captured, eager):
        if page_size:
            some.cache.reserve(400)
        some.append(np.random.default_rng(seed), [300, 5])
    q, k, v = (captured.draw(rng, heads, 1, "float16")[0] for heads in (8, 2, 2))
    given = in_library(GPU, SETS[name](rng, 2, 8, 1))

    def renew():
        for key, x in in_library(GPU, SETS[name](rng, 2, 8, 1)).items():
            if isinstance(x, cupy.ndarray):
                given[key][...] = x

    caches = captured.cache, eager.cache
    replay_while_sequences_grow(
        cupy, rng, caches, [300, 5], (q, k, v), 40, given=given, renew=renew
    )
    np.testing.assert_array_equal(captured.cache.lengths, [340, 45])


def test_arrays_of_pytorch(torch, rng):
    filled = Filled(GPU, batch=3).append(rng, [300, 128, 3])
    options = SETS["everything"](rng, 3, 4, 2)
    q, _ = filled.draw(rng, 4, 2, "float16")
    wanted = filled.cache.attend(q, return_lse=True, **in_library(GPU, options))

    def tensor(x):
        return torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x

    given = {name: tensor(x) for name, x in options.items()}
    # As models have them: expanded over the heads, sinks of another type.
    given["attn_mask"] = given["attn_mask"].expand(3, 4, 2, 30)
    given["sinks"] = given["sinks"].to(torch.bfloat16)
    found = filled.cache.attend(torch.from_dlpack(q), return_lse=True, **given)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x.cpu().numpy(), on_host(y))
    seen = options["attn_mask"] > -np.inf
    as_booleans = filled.cache.attend(torch.from_dlpack(q), attn_mask=tensor(seen))
    expected = filled.cache.attend(q, attn_mask=GPU.array(seen, "bool"))
    np.testing.assert_array_equal(as_booleans.cpu().numpy(), on_host(expected))
