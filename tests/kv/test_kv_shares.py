"""What kernels that decode are told of sizes: divisors, whose quotients are exact."""

import random

import pytest

from cuattn.compile.params import record
from cuattn.kv.shares import reciprocal, share_values

LIMIT = 2**31
POWERS = [2**k for k in range(32)]


def divided(n, by):
    """Do what `divided` in kernels_cu/kv/reciprocal.cuh does, in 32 bits."""
    assert 0 <= by["multiplier"] < 2**32
    assert 0 <= by["shift"] < 32
    assert 0 <= 2 * n < 2**32
    return 2 * n * by["multiplier"] >> 32 >> by["shift"]


def numerators(divisor):
    """Return numbers beside multiples of a divisor and beside powers of two, and any."""
    most = (LIMIT - 1) // divisor
    factors = {0, 1, 2, 3, most // 2, most - 1, most}
    near = [divisor * x for x in factors] + POWERS
    some = random.Random(divisor)
    anywhere = [some.randrange(LIMIT) for _ in range(20)]
    found = {x + step for x in near for step in (-1, 0, 1)} | {LIMIT - 1, *anywhere}
    return [n for n in found if 0 <= n < LIMIT]


def divisors():
    some = random.Random(0)
    near = {x + step for x in POWERS for step in (-1, 0, 1)}
    anywhere = {some.randrange(1, LIMIT) for _ in range(500)}
    return sorted(d for d in {*range(1, 500), *near, *anywhere} if 0 < d < LIMIT)


def test_quotients_are_exact():
    for divisor in divisors():
        by = reciprocal(divisor)
        for n in numerators(divisor):
            assert divided(n, by) == n // divisor, (n, divisor)


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 132, 396])
def test_quotients_of_all_small_numbers_are_exact(divisor):
    by = reciprocal(divisor)
    assert [divided(n, by) for n in range(5000)] == [n // divisor for n in range(5000)]


def test_values_are_members_of_the_params():
    values = share_values(heads_per_kv=3, row_tiles=2, num_kv_heads=4, batch=5, ctas=132)
    layout = record("DecodeParams", "kv/kv_params.cuh")
    assert set(values) <= set(layout.names)
    assert set(reciprocal(1)) == set(layout["by_ctas"].names)
    assert values["ctas_of_head"] == 132 // 40
    for name, divisor in (
        ("heads_per_kv", 3),
        ("row_tiles", 2),
        ("ctas", 132),
        ("ctas_of_head", 3),
    ):
        assert values[f"by_{name}"] == reciprocal(divisor)


def test_more_heads_than_ctas_have_none_to_themselves():
    values = share_values(heads_per_kv=1, row_tiles=1, num_kv_heads=8, batch=64, ctas=132)
    assert values["ctas_of_head"] == 0
    assert values["by_ctas_of_head"] == reciprocal(1)
