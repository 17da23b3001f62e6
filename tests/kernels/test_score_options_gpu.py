"""Windows, caps, sinks, slopes and masks on a GPU: against the emulation of the same codes."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from helpers.gpu_cases import (
    DTYPES,
    check,
    emulated,
    make,
    mma_family,
    on_gpu,
    on_host,
    run,
    runs_here,
    tolerance,
)
from helpers.score_cases import SETS, in_library, score_options
from helpers.score_kernels import (
    MASKED,
    WINDOWED,
    compile_kernels,
    rules_of,
    same_but_for_rules,
)

from cuattn.presets import PRESETS
from cuattn.reference import exact
from cuattn.specs.rules import PLAIN

pytestmark = pytest.mark.gpu

NAMES = (
    *("int8", "int8-block", "int8-fast", "int8-token", "int8-fp16", "int4"),
    *("fp16", "fp8", "int-flash", "sage2-8", "twin"),
)
SCHEMES = {name: PRESETS[name] for name in NAMES if runs_here(PRESETS[name])}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)

HEAD_DIMS = (64, 128, 96, 256)
# Heads that share keys: 1, 4 and 8.
HEADS = [(2, 2), (8, 2), (8, 1)]
# Queries fewer than keys, as many, more; around tiles; one.
LENGTHS = [(200, 300), (300, 300), (300, 130), (65, 257), (1, 300), (130, 700), (193, 64)]


def turns(scheme, name=""):
    """Return a number that differs from scheme to scheme and set to set."""
    return NAMES.index(scheme) + (list(SETS).index(name) if name in SETS else 0)


def kind_of(scheme, name):
    """Return the head_dim of a case, and the types of its operands and of its options."""
    turn = turns(scheme, name)
    return HEAD_DIMS[turn % 4], DTYPES[turns(scheme) % 3], DTYPES[turn // 2 % 3]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    kinds = []
    for scheme, how in SCHEMES.items():
        for name in SETS:
            head_dim, dtype, of_options = kind_of(scheme, name)
            kinds.append((how, head_dim, dtype, rules_of(name, of_options)))
        for is_causal, rules in product((False, True), (PLAIN, MASKED["bool"])):
            kinds.append((how, 64, "float16", (is_causal, rules)))
        for rules in (WINDOWED, MASKED["bool"], MASKED["float32"]):
            kinds.append((how, 64, "float32", (False, rules)))
    compile_kernels(kinds)


def case(rng, scheme, name, lengths, heads, batch=2):
    """Return arrays of Q, K and V, and options as arrays of the GPU and of NumPy."""
    head_dim, dtype, of_options = kind_of(scheme, name)
    inputs = make(rng, batch=batch, heads=heads, seqlens=lengths, head_dim=head_dim)
    options = score_options(name, rng, inputs[0].shape, lengths[1])
    return [on_gpu(x, dtype) for x in inputs], in_library(options, of_options, on_gpu), options


def blind_rows(arrays, options):
    """Return which rows see no key."""
    alone = {name: x for name, x in options.items() if name != "sinks"}
    return np.isneginf(exact.attention(*map(on_host, arrays), **alone)[1])


def check_blind_rows(result, blind, sinks=None):
    """Between rows that see something: O is 0, and lse their head's sink."""
    o, lse = map(on_host, result)
    assert not o[blind].any()
    of_row = np.full(lse.shape, -np.inf) if sinks is None else sinks[:, None] + np.zeros(lse.shape)
    np.testing.assert_array_equal(lse[blind], of_row[blind])


@every_scheme
@pytest.mark.parametrize("name", SETS)
def test_kernels_match_the_emulation(rng, scheme, name):
    turn = turns(scheme, name)
    for i in range(2):
        lengths, heads = LENGTHS[(2 * turn + i) % len(LENGTHS)], HEADS[(turn + i) % len(HEADS)]
        arrays, options, of_numpy = case(rng, scheme, name, lengths, heads)
        result = run(arrays, SCHEMES[scheme], **options)
        check(result, arrays, SCHEMES[scheme], **of_numpy)
        check_blind_rows(result, blind_rows(arrays, of_numpy), of_numpy.get("sinks"))


@pytest.mark.parametrize(
    "scheme", [x for x in ("int8", "int8-block", "int8-token", "int4", "fp16") if x in SCHEMES]
)
@pytest.mark.parametrize("name", ["sliding", "bool", "everything"])
def test_kernels_of_single_warps_match_it_too(rng, scheme, name):
    arrays, options, of_numpy = case(rng, scheme, name, (130, 333), (4, 2))
    with mma_family():
        result = run(arrays, SCHEMES[scheme], **options)
        check(result, arrays, SCHEMES[scheme], **of_numpy)
    check_blind_rows(result, blind_rows(arrays, of_numpy), of_numpy.get("sinks"))


@pytest.mark.parametrize("scheme", [x for x in ("int8", "int8-fast", "fp16") if x in SCHEMES])
@pytest.mark.parametrize("name", ["sliding", "bool", "everything"])
def test_more_items_than_multiprocessors(rng, scheme, name):
    arrays, options, of_numpy = case(rng, scheme, name, (400, 500), (16, 4), batch=3)
    result = run(arrays, SCHEMES[scheme], **options)
    check(result, arrays, SCHEMES[scheme], **of_numpy)
    again = run(arrays, SCHEMES[scheme], **options)
    for x, y in zip(result, again, strict=True):
        assert on_host(x).tobytes() == on_host(y).tobytes()


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_what_changes_nothing_gives_the_same_bits(rng, scheme, is_causal):
    inputs = make(rng, batch=2, heads=(8, 2), seqlens=(150, 333), head_dim=64)
    arrays = [on_gpu(x, "float16") for x in inputs]
    how = {"is_causal": is_causal}
    o, lse = map(on_host, run(arrays, SCHEMES[scheme], **how))
    neutral = [
        {"window_size": (332, 149)},
        {"window_size": (-1, 0) if is_causal else (-1, -1)},
        {"softcap": 0},
        {"sinks": on_gpu(np.full(8, -np.inf), "float32")},
    ]
    masks = [np.ones((1, 333), bool), np.ones((2, 8, 150, 333), bool)]
    neutral += [{"attn_mask": on_gpu(x, "bool")} for x in masks]
    for options in neutral:
        found, found_lse = map(on_host, run(arrays, SCHEMES[scheme], **how, **options))
        assert found_lse.tobytes() == lse.tobytes()
        if "attn_mask" not in options or same_but_for_rules(
            SCHEMES[scheme], 64, "float16", is_causal
        ):
            assert found.tobytes() == o.tobytes()
        else:
            np.testing.assert_allclose(found, o, atol=2e-3, rtol=2e-3)


# Of Q, and slopes of heads: in the first case the steepest leave scores no room in 22 bits, in the
# second all that are not 0, and blocks of K without smoothing have scales that are 0.
@pytest.mark.parametrize("gain", [1.0, 2.0**-7])
@pytest.mark.parametrize("scheme", [x for x in ("int8", "int8-block", "int8-fast") if x in SCHEMES])
def test_slopes_of_any_size_beside_scores_of_any_size(rng, scheme, gain):
    q, k, v = make(rng, heads=(4, 2), seqlens=(200, 450), head_dim=128)
    k[:, :1, 120:400] = 0
    slopes = np.float32([0.0, -0.125, 0.75, 8.0])
    arrays = [on_gpu(x, "float32") for x in (gain * q, k, v)]
    for how in (SCHEMES[scheme], replace(SCHEMES[scheme], smooth_k="none")):
        options = {"is_causal": True, "alibi_slopes": slopes}
        result = run(arrays, how, **in_library(options, "float32", on_gpu))
        check(result, arrays, how, **options)


# Of 512 keys these are hidden: two whole blocks of 128, or one key of a block that is seen.
WHOLE_BLOCKS, ONE_KEY = slice(0, 256), slice(300, 301)


def hidden_by(how, hidden):
    seen = np.ones((1, 512), bool)
    seen[:, hidden] = False
    if how == "bool":
        return {"attn_mask": seen}
    if how == "bias":
        return {"attn_mask": np.where(seen, 0, -np.inf).astype(np.float32)}
    return {"window_size": (100, 0)}


@every_scheme
@pytest.mark.parametrize("poisoned", ["k", "v", "kv"])
@pytest.mark.parametrize(
    ("how", "hidden"),
    [
        ("window", WHOLE_BLOCKS),
        ("bool", WHOLE_BLOCKS),
        ("bias", WHOLE_BLOCKS),
        ("bool", ONE_KEY),
        ("bias", ONE_KEY),
    ],
    ids=["window", "blocks-bool", "blocks-bias", "key-bool", "key-bias"],
)
def test_nan_that_is_hidden_stays_within_its_scales(rng, scheme, poisoned, how, hidden):
    if hidden == ONE_KEY and "v" in poisoned and SCHEMES[scheme].pv == "fp16":
        pytest.skip("in IEEE arithmetic NaN of V reaches rows that see others of its tile")
    inputs = dict(zip("qkv", make(rng, heads=(4, 2), seqlens=(130, 512)), strict=True))
    for name in poisoned:
        inputs[name][:, :, hidden] = np.nan
    arrays = [on_gpu(x, "float32") for x in inputs.values()]
    options = hidden_by(how, hidden)
    found = run(arrays, SCHEMES[scheme], **in_library(options, "float32", on_gpu))
    wanted = emulated(arrays, SCHEMES[scheme], **options)
    allowed = tolerance(SCHEMES[scheme])
    # Of a section of sorted keys whose scale of V is NaN, lse is too.
    of_sections = SCHEMES[scheme].v_scope == "sorted" and hidden == ONE_KEY and "v" in poisoned
    for x, y in list(zip(map(on_host, found), wanted, strict=True))[: 1 if of_sections else 2]:
        x, y = (part[np.isfinite(y)] for part in (x, y))
        assert np.isfinite(x).all()
        off, norm = (np.sqrt(np.sum(part**2)) for part in (x - y, y))
        assert off <= (allowed.rms + allowed.lse_atol) * norm


@pytest.mark.parametrize("scheme", [x for x in SCHEMES if x in ("int8", "int8-block", "fp16")])
@pytest.mark.parametrize("family", [nullcontext, mma_family])
def test_slopes_that_exponents_are_multiples_of(rng, scheme, family):
    """And those that they are not: none, negative ones, and such as would overflow or vanish."""
    arrays = [
        on_gpu(x, "float16") for x in make(rng, heads=(8, 4), seqlens=(300, 400), head_dim=64)
    ]
    slopes = np.array([0.0, -0.3, 1e-14, 2.0**-20, 0.02, 0.7, 4.0, -0.0], np.float32)
    with family():
        found = run(arrays, scheme, is_causal=True, alibi_slopes=on_gpu(slopes, "float32"))
    check(found, arrays, scheme, is_causal=True, alibi_slopes=slopes)
