"""Named inputs: reproducible, of the right shape, and what their names say."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference import exact
from cuattn.reference.distributions import DISTRIBUTIONS, make

SIZES = {
    "batch": 2,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "seqlen_q": 5,
    "seqlen_kv": 9,
    "head_dim": 8,
}
# Enough numbers that a standard deviation is within 2 % of its expectation.
LARGE = SIZES | {"seqlen_q": 500, "seqlen_kv": 500, "head_dim": 64}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_make_gives_the_shapes_asked_for_and_repeats_itself(name):
    q, k, v = make(name, **SIZES)
    assert q.shape == (2, 4, 5, 8)
    assert k.shape == v.shape == (2, 2, 9, 8)
    assert q.dtype == k.dtype == v.dtype == np.float32
    for x, same, other in zip(
        (q, k, v), make(name, **SIZES), make(name, **SIZES, seed=1), strict=True
    ):
        np.testing.assert_array_equal(x, same)
        assert not np.array_equal(x, other)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("size", ["batch", "seqlen_q", "seqlen_kv"])
def test_make_accepts_empty_sizes(name, size):
    sizes = SIZES | {size: 0}
    q, k, _ = make(name, **sizes)
    assert q.shape[0] == k.shape[0] == sizes["batch"]
    assert (q.shape[2], k.shape[2]) == (sizes["seqlen_q"], sizes["seqlen_kv"])


def test_make_draws_what_the_names_say():
    def std(name):
        return [float(x.std()) for x in make(name, **LARGE)]

    assert std("normal") == pytest.approx([1, 1, 1], rel=0.02)
    assert std("uniform") == pytest.approx([12**-0.5] * 3, rel=0.02)
    assert std("peaked") == pytest.approx([4, 1, 1], rel=0.02)
    assert std("outliers") == pytest.approx([1.1**0.5] * 3, rel=0.03)
    _, _, v = make("sharp", **LARGE)
    assert v.mean() == pytest.approx(0.5, abs=0.01)


def test_k_bias_is_common_to_all_tokens_and_differs_between_heads():
    _, k, _ = make("k-bias", **LARGE)
    bias = k.mean(axis=(0, 2))
    assert bias.std() == pytest.approx(3, rel=0.2)
    assert np.abs(bias[0] - bias[1]).max() > 1
    assert (k - bias[:, None]).std() == pytest.approx(1, rel=0.02)


def test_common_means_are_those_of_all_tokens_of_a_head():
    q, k, v = make("common-mean", **LARGE)
    for x in (q, k, v):
        bias = x.mean(axis=(0, 2))
        assert bias.std() == pytest.approx(1, rel=0.2)
        assert np.abs(bias[0] - bias[-1]).max() > 1
        assert (x - bias[:, None]).std() == pytest.approx(1, rel=0.02)
    # Query heads of the same keys have one in common; Q and K have not.
    of_q, of_k = q.mean(axis=(0, 2)), k.mean(axis=(0, 2))
    assert np.abs(of_q[0] - of_q[1]).max() < 0.2
    assert abs(np.corrcoef(of_q[0], of_k[0])[0, 1]) < 0.5


def test_channel_outliers_are_the_same_channels_everywhere():
    q, k, v = make("channel-outliers", **LARGE)
    for x in (q, k):
        of_channel = x.std(axis=2).reshape(-1, LARGE["head_dim"])
        large = of_channel > 4
        assert large.sum(axis=1).tolist() == [4] * len(large)
        assert (large == large[0]).all()
        np.testing.assert_allclose(of_channel[large], 8, rtol=0.15)
        np.testing.assert_allclose(of_channel[~large], 1, rtol=0.15)
    np.testing.assert_array_equal(q.std(axis=(0, 1, 2)) > 4, k.std(axis=(0, 1, 2)) > 4)
    assert v.std() == pytest.approx(1, rel=0.02)


def test_outliers_are_one_in_a_thousand():
    _, k, _ = make("outliers", **LARGE)
    # |N(0, 101)| > 6 has a probability of 0.55; |N(0, 1)| > 6 never happens.
    assert np.mean(np.abs(k) > 6) == pytest.approx(0.55e-3, rel=0.3)


def test_sinks_draw_about_half_of_the_weight():
    sizes = SIZES | {"seqlen_kv": 4096, "seqlen_q": 64, "head_dim": 128}
    q, k, v = make("sinks", **sizes)
    is_sink = np.zeros_like(v)
    is_sink[:, :, :4] = 1
    weight, _ = exact.attention(q, k, is_sink)
    assert 0.3 < weight.mean() < 0.7
    assert v[:, :, :4].std() < 0.1 * v[:, :, 4:].std()


def test_rope_logits_depend_on_the_distance_only():
    sizes = SIZES | {"seqlen_q": 6, "seqlen_kv": 6, "head_dim": 8}
    from cuattn.reference.distributions import _rotate

    x, y = make("normal", **sizes)[0][:1, :1, :1], make("normal", **sizes, seed=1)[0][:1, :1, :1]
    at = {p: (_rotate(x, p), _rotate(y, p)) for p in (0, 3, 10, 13)}
    near = np.sum(at[3][0] * at[0][1])
    assert near == pytest.approx(np.sum(at[13][0] * at[10][1]), rel=1e-5)
    assert near != pytest.approx(np.sum(at[10][0] * at[0][1]), rel=1e-2)
    np.testing.assert_array_equal(at[0][0], x)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"batch": -1}, "batch"),
        ({"num_kv_heads": 0}, "num_kv_heads"),
        ({"num_kv_heads": 3}, "num_q_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"seqlen_q": 1.5}, "seqlen_q"),
        ({"seed": -1}, "seed"),
        ({"name": "gaussian"}, "name"),
    ],
)
def test_make_refuses_impossible_sizes(change, argument):
    with pytest.raises(ArgumentError, match=f"^{argument} must be"):
        make(**({"name": "normal"} | SIZES | change))
