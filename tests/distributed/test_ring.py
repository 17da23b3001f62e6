"""Rings of ranks in one process: against float64 of the whole, and bit for bit the definition."""

import numpy as np
import pytest
from ring_cases import inputs, over_ranks, relative_l1, seen_by, sharded, whole

import cuattn
from cuattn.distributed import all_gather_attention, ring_attention, run_virtual, shard, unshard
from cuattn.distributed.parcel import Carrier
from cuattn.presets import PRESETS
from cuattn.reference import exact
from cuattn.reference.ring import ring

# Causal and not, odd lengths, windows of either side, empty shards, every kind of operand that
# travels: sorted, by token, by block, by channel, unquantized, one scale for a head.
CASES = {
    "causal": ("zigzag", 301, {"is_causal": True}),
    "no-mask": ("zigzag", 130, {}),
    "contiguous": ("contiguous", 131, {"is_causal": True, "scheme": "int8-block"}),
    "striped": ("striped", 101, {"is_causal": True, "scheme": "int8-token"}),
    "window": ("zigzag", 301, {"is_causal": True, "window_size": (40, -1)}),
    "two-sided": ("striped", 150, {"window_size": (40, 17), "scheme": "int8-fp16"}),
    "near": ("contiguous", 200, {"window_size": (30, 5), "scheme": "fp8"}),
    "empty": ("zigzag", 3, {"is_causal": True, "scheme": "int8-fast"}),
    "half": ("zigzag", 65, {"is_causal": True, "scheme": "fp16", "softcap": 20.0}),
    "four-bits": ("zigzag", 140, {"is_causal": True, "wire": "int4"}),
    "as-they-are": ("zigzag", 140, {"is_causal": True, "wire": "input"}),
}

# Chunks of whole blocks, but for the last ones: a rank's keys are quantized together, and some of
# its rows see the first ones only.
OF_WHOLE_BLOCKS = {
    "sorted": {"is_causal": True},
    "by-block": {"is_causal": True, "scheme": "int8-block"},
    "values": {"is_causal": True, "scheme": "int8-fp16"},
    "one-scale": {"is_causal": True, "scheme": "int8-fast"},
    "ahead": {"window_size": (-1, 37), "scheme": "int8-token"},
    "half": {"is_causal": True, "scheme": "fp16", "softcap": 20.0},
    "four-bits": {"is_causal": True, "wire": "int4"},
    "as-they-are": {"is_causal": True, "wire": "input"},
    "values-as-they-are": {"is_causal": True, "scheme": "int8-fp16", "wire": "input"},
}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_ring_is_its_definition(rng, name, size):
    placement, tokens, options = CASES[name]
    check_definition(rng, size, placement, inputs(rng, tokens, np.float16), options)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", OF_WHOLE_BLOCKS)
def test_ring_of_whole_blocks_is_its_definition(rng, name, size):
    arrays = inputs(rng, 256 * size - 3, np.float16, heads=2, kv_heads=1)
    check_definition(rng, size, "zigzag", arrays, OF_WHOLE_BLOCKS[name])


def check_definition(rng, size, placement, arrays, options):
    """Check a ring against its definition, bit for bit, and against float64."""
    sinks = rng.standard_normal(arrays[0].shape[1]).astype(np.float32)
    options = {**options, "placement": placement, "sinks": sinks}
    o, lse = over_ranks(ring_attention, arrays, size, **options)
    wire = options.pop("wire", None)
    wanted = ring(*arrays, size, four_bits=wire == "int4", **options)
    np.testing.assert_array_equal(o, wanted[0])
    np.testing.assert_array_equal(lse, wanted[1])
    true = {key: options[key] for key in ("is_causal", "window_size", "softcap") if key in options}
    exact_o, exact_lse = exact.attention(*arrays, sinks=sinks, **true)
    most = 0.22 if wire == "int4" else 0.07 if options.get("scheme") == "fp8" else 0.02
    assert relative_l1(o, exact_o) < most
    assert np.abs(lse - exact_lse).max() < 20 * most


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "wire" not in case[2]])
def test_one_rank_is_attention(rng, name):
    placement, tokens, options = CASES[name]
    arrays = inputs(rng, tokens, np.float16)
    o, lse = over_ranks(ring_attention, arrays, 1, placement, **options)
    wanted = cuattn.attention(*arrays, return_lse=True, **options)
    np.testing.assert_array_equal(o, wanted[0])
    np.testing.assert_array_equal(lse, wanted[1])


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int4"])
def test_how_keys_travel_changes_nothing(rng, scheme):
    """Codes go on as they are: quantized once, or by each rank anew, they are the same."""
    arrays = inputs(rng, 140)
    options = {"is_causal": True, "placement": "zigzag", "scheme": scheme}
    o, _ = over_ranks(ring_attention, arrays, 3, **options)
    again, _ = over_ranks(ring_attention, arrays, 3, **options, wire="input")
    gathered, _ = over_ranks(all_gather_attention, arrays, 3, **options)
    np.testing.assert_array_equal(gathered, o)
    if scheme != "int4":  # what smoothing took of Q is worked out with the codes of K, or with K
        np.testing.assert_array_equal(again, o)


def test_codes_of_half_an_octet_under_a_mask_are_near(rng):
    arrays = inputs(rng, 140)
    o, _ = over_ranks(ring_attention, arrays, 3, "zigzag", is_causal=True, scheme="int4")
    assert relative_l1(o, exact.attention(*arrays, is_causal=True)[0]) < 0.25


def test_more_keys_than_rows_and_ranks_with_none(rng):
    """Contiguous shards may be of any lengths; the last row stands beside the last key."""
    q, k, v = inputs(rng, 70, tokens_of_k=110)
    rows, keys = np.array([0, 30, 30, 70]), np.array([0, 0, 90, 110])

    def work(group):
        at = slice(*rows[group.rank : group.rank + 2]), slice(*keys[group.rank : group.rank + 2])
        own = q[:, :, at[0]], k[:, :, at[1]], v[:, :, at[1]]
        return ring_attention(*own, group, is_causal=True, placement="contiguous")

    o = np.concatenate(run_virtual(3, work), axis=2)
    assert relative_l1(o, exact.attention(q, k, v, is_causal=True)[0]) < 0.02


def test_rows_that_see_nothing_are_zero(rng):
    q, k, v = inputs(rng, 20, tokens_of_k=5)

    def work(group):
        own = [shard(x, 2, group.rank, "contiguous") for x in (q, k, v)]
        options = {"is_causal": True, "placement": "contiguous", "return_lse": True}
        return ring_attention(*own, group, **options)

    o, lse = whole(run_virtual(2, work), "contiguous")
    assert not o[:, :, :15].any()
    assert np.isneginf(lse[:, :, :15]).all()
    assert np.isfinite(lse[:, :, 15:]).all()


def test_tokens_before_heads(rng):
    arrays = inputs(rng, 61)
    o, lse = over_ranks(ring_attention, arrays, 2, "zigzag", is_causal=True)

    def work(group):
        own = [x.swapaxes(1, 2) for x in sharded(arrays, group, "zigzag")]
        return ring_attention(*own, group, is_causal=True, layout="NHD", return_lse=True)

    results = run_virtual(2, work)
    others = unshard([x for x, _ in results], "zigzag", layout="NHD")
    np.testing.assert_array_equal(others.swapaxes(1, 2), o)
    np.testing.assert_array_equal(results[1][1], lse[:, :, shard_of_lse(61)])


def shard_of_lse(tokens):
    return cuattn.distributed.positions(tokens, 2, 1)


def test_a_mask_of_all_keys(rng):
    arrays = inputs(rng, 101)
    mask = rng.random((1, 1, 101, 101)) < 0.7
    wanted, _ = exact.attention(*arrays, is_causal=True, attn_mask=mask)
    for placement in ("zigzag", "striped"):

        def work(group, placement=placement):
            own = sharded([*arrays, mask], group, placement)
            options = {"is_causal": True, "placement": placement, "attn_mask": own.pop()}
            return all_gather_attention(*own, group, **options)

        assert relative_l1(unshard(run_virtual(3, work), placement), wanted) < 0.02


@pytest.mark.parametrize(
    ("scheme", "wire", "most"),
    [
        *((name, None, 0.53) for name in ("int8", "int8-token", "int8-block", "int8-fast")),
        ("int8", "int4", 0.28),
        ("int8-fp16", None, 0.77),
        ("int8", "input", 1.0),
    ],
)
def test_bytes_of_a_token_on_the_wire(scheme, wire, most):
    """K and V of float16 are 512 bytes of a head of 128 channels."""
    carrier = Carrier(PRESETS[scheme], wire, 1, 8, 128, 128, "float16", "HND")
    tokens = 16384
    assert carrier.nbytes(tokens) <= most * 512 * 8 * tokens


@pytest.mark.parametrize("own", [64, 512])
def test_causal_zigzag_gives_all_ranks_the_same_work(own):
    """In each step half of a rank's rows see all keys, or all see half of them, or the triangle.

    With chunks of whole blocks each is one call.
    """
    from cuattn.distributed.call import tokens_of
    from cuattn.distributed.parts import parts_of, pieces_of

    ranks = tokens_of([own] * 4, "zigzag", name="q")
    for step in range(4):
        pairs = []
        for rank, rows in enumerate(ranks):
            parts = [
                part
                for piece in pieces_of(ranks[rank - step], -1, 0)
                for part in parts_of(rows, piece, -1, 0)
            ]
            assert len(parts) == 1 or own % 256
            pairs.append(sum(int(seen_by(part).sum()) for part in parts))
        assert len(set(pairs)) == 1
        assert pairs[0] == (own * (own + 1) // 2 if step == 0 else own * own // 2)
