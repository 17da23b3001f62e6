"""Each metric against values computed by hand."""

import math

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference import metrics

REFERENCE = np.array([[3.0, -4.0], [0.0, 1.0]])
OUTPUT = np.array([[3.0, -3.0], [0.5, 1.0]])  # off by 0, 1, 0.5, 0

BY_HAND = {
    "cosine": (9 + 12 + 0 + 1) / math.sqrt((9 + 9 + 0.25 + 1) * (9 + 16 + 0 + 1)),
    "relative_l1": 1.5 / 8,
    "relative_l2": math.sqrt(1.25 / 26),
    "rmse": math.sqrt(1.25 / 4),
    "max_abs": 1.0,
    "mean_relative": (1 / 4.00001 + 0.5 / 0.00001) / 4,
    "snr_db": 10 * math.log10(26 / 1.25),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_metric_equals_its_value_by_hand(name):
    assert getattr(metrics, name)(OUTPUT, REFERENCE) == pytest.approx(BY_HAND[name], rel=1e-14)


def test_metrics_returns_all_of_them():
    assert metrics.metrics(OUTPUT, REFERENCE) == pytest.approx(BY_HAND, rel=1e-14)


@pytest.mark.parametrize("x", [REFERENCE, np.zeros((2, 2)), np.zeros((0, 3))])
def test_equal_arrays_have_no_error(x):
    found = metrics.metrics(x, x)
    assert found.pop("cosine") == pytest.approx(1.0, rel=1e-15)
    assert found.pop("snr_db") == math.inf
    assert set(found.values()) == {0.0}


def test_a_zero_reference_makes_relative_errors_infinite():
    found = metrics.metrics(np.ones(2), np.zeros(2))
    assert found["cosine"] == 0.0
    assert found["relative_l1"] == found["relative_l2"] == math.inf
    assert found["snr_db"] == -math.inf
    assert found["mean_relative"] == pytest.approx(1e5)


def test_metrics_show_nan():
    found = metrics.metrics(np.array([1.0, np.nan]), np.ones(2))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("reference", [1.0, np.inf])
def test_metrics_show_infinities_without_a_warning(reference):
    found = metrics.metrics(np.array([1.0, np.inf]), np.array([2.0, reference]))
    assert not any(math.isfinite(found[name]) for name in ("relative_l1", "rmse", "max_abs"))


def test_metrics_do_not_round_to_half_precision():
    x = np.full(10_000, 100.0, np.float16)
    assert metrics.rmse(x, np.zeros_like(x)) == pytest.approx(100.0)


def test_metrics_refuse_different_shapes():
    with pytest.raises(ArgumentError, match=r"^o\.shape must be the shape \(2, 2\)"):
        metrics.metrics(np.zeros(4), REFERENCE)
