"""Means that no few tokens can move far: what smoothing subtracts in this project's own schemes."""

import numpy as np
import pytest

from cuattn.reference import emulate, exact, quantize
from cuattn.reference.distributions import DISTRIBUTIONS, make
from cuattn.reference.metrics import relative_l1
from cuattn.reference.smoothing import GROUPS, sample, smoothing_vector

SIZES = {"batch": 1, "num_q_heads": 4, "num_kv_heads": 4, "seqlen_q": 1, "head_dim": 128}


def of(numbers, how="robust"):
    """Return the mean of one channel."""
    return float(smoothing_vector(np.float32(numbers)[None, None, :, None], how)[0, 0, 0])


@pytest.mark.parametrize(
    ("numbers", "mean"),
    [
        ([5.0], 5.0),
        ([5.0, 7.0], 6.0),
        # The quartiles of three are the middle one.
        ([5.0, 7.0, 1e6], 7.0),
        # Of 16: 4 and 11, seven apart, so fences at -17 and 32.
        (range(16), 7.5),
        ([*range(15), 32], 137 / 16),
        ([*range(15), 1e6], 137 / 16),
        ([-1e6, *range(1, 16)], (-17 + 120) / 16),
        # Where all are equal but a few, these do not count.
        ([3.0] * 12 + [100.0, -100.0, 1e30, np.inf], 3.0),
        # 15 of them: the fourth and the twelfth, 3 and 11.
        ([*range(15), np.nan], 7.0),
    ],
)
def test_fences_by_hand(numbers, mean):
    assert of(numbers) == pytest.approx(mean, rel=1e-6)
    assert of(numbers, "sample") == pytest.approx(mean, rel=1e-6)


def test_groups_are_of_consecutive_tokens_and_count_by_their_size():
    """Of 40 tokens eight groups have three, and the others two."""
    groups = [list(range(g * 40 // GROUPS, (g + 1) * 40 // GROUPS)) for g in range(GROUPS)]
    numbers = np.concatenate([np.full(len(tokens), g) for g, tokens in enumerate(groups)])
    assert of(numbers) == pytest.approx(numbers.mean())
    numbers[numbers == GROUPS - 1] = 1_000_000
    last = len(groups[-1])
    assert of(numbers) == pytest.approx((numbers[:-last].sum() + last * 32) / 40)


def test_the_sample_is_the_whole_of_512_tokens():
    x = np.random.default_rng(0).standard_normal((2, 2, 512, 8)).astype(np.float32)
    np.testing.assert_array_equal(smoothing_vector(x, "sample"), smoothing_vector(x, "robust"))
    more = np.repeat(x, 3, axis=2)
    np.testing.assert_array_equal(sample(more), x)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("how", ["robust", "sample"])
def test_nothing_stands_out_as_a_rule(distribution, how):
    """What groups within the fences move is next to nothing of what a sample misses of the mean."""
    x = make(distribution, **SIZES, seqlen_kv=512)[1]
    moved = smoothing_vector(x, how) - smoothing_vector(x, "mean")
    deviation = x.std(axis=2) / np.sqrt(512)
    assert np.mean(np.abs(moved) > 1e-3 * deviation) < 0.15
    assert np.sqrt(np.mean((moved / deviation) ** 2)) < 0.12


@pytest.mark.parametrize("tokens", [1, 32, 128])
@pytest.mark.parametrize("size", [1e2, 1e4, np.inf, np.nan])
def test_up_to_a_quarter_of_the_tokens_moves_it_little(tokens, size):
    x = np.random.default_rng(1).standard_normal((1, 4, 512, 64)).astype(np.float32)
    clean = smoothing_vector(x, "mean")
    x[:, :, 512 - tokens :] *= np.float32(size)
    moved = np.abs(smoothing_vector(x, "robust") - clean)
    # In standard deviations of a channel; plain means move by 0.2 to 2500.
    assert np.sqrt(np.mean(moved**2)) < (0.06 if tokens < 128 else 0.2)


def of_plain_means(x, how):
    """Return what smoothing would subtract if means were plain."""
    return smoothing_vector(
        sample(x) if how == "sample" else x, "none" if how == "none" else "mean"
    )


@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int8-block", "int8-fast"])
def test_errors_are_those_of_plain_means(scheme, monkeypatch):
    """On inputs in which nothing stands out: the roundings are others, their size is not."""

    def error(name):
        o, _ = emulate.attention(*inputs[name], scheme=scheme)
        return relative_l1(o, exact.attention(*inputs[name])[0])

    names = ("normal", "outliers", "sinks", "channel-outliers", "common-mean", "rope")
    inputs = {name: make(name, **(SIZES | {"seqlen_q": 128}), seqlen_kv=1024) for name in names}
    found = np.array([error(name) for name in names])
    monkeypatch.setattr(quantize, "smoothing_vector", of_plain_means)
    ratios = found / [error(name) for name in names]
    assert ratios.max() < 1.03
    assert ratios.mean() == pytest.approx(1, abs=0.01)
