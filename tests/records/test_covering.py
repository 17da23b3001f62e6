"""Which combinations of parameters are run by default."""

from itertools import combinations, product

from helpers.covering import covering

pytest_plugins = ("pytester",)


def rows(**values):
    return [dict(zip(values, some, strict=True)) for some in product(*values.values())]


def pairs(some):
    return {pair for row in some for pair in combinations(row.items(), 2)}


def test_every_pair_occurs_in_few_of_all_combinations():
    every = rows(scheme="abcdef", head_dim=(32, 64, 128), dtype="xyz", causal=(False, True))
    chosen = [every[i] for i in covering(every)]
    assert pairs(chosen) == pairs(every)
    # Schemes and head dims alone have 18 pairs.
    assert 18 <= len(chosen) <= 24


def test_pairs_may_be_of_what_matters_of_a_value():
    every = rows(way="abcd", head_dim=range(8, 257, 8))
    chosen = [every[i] for i in covering(every, {"head_dim": lambda x: x > 128})]
    assert {row["head_dim"] for row in chosen} == {*range(8, 257, 8)}
    assert {(row["way"], row["head_dim"] > 128) for row in chosen} == {
        *product("abcd", (False, True))
    }
    assert len(chosen) == 32


def test_several_features_of_a_value_count_each():
    every = rows(way="ab", n=range(16))
    features = {"n": (lambda n: n % 2, lambda n: n < 8)}
    chosen = [every[i] for i in covering(every, features)]
    assert {(row["way"], row["n"] % 2) for row in chosen} == {*product("ab", (0, 1))}
    assert {(row["way"], row["n"] < 8) for row in chosen} == {*product("ab", (False, True))}
    assert {row["n"] for row in chosen} == {*range(16)}


def test_two_parameters_leave_nothing_out():
    every = rows(a="abc", b="xyz")
    assert covering(every) == [*range(9)]


def test_what_others_have_is_not_chosen_again():
    every = rows(a="abc", b="xyz", c="uv")
    taken = [0, 7]
    chosen = covering(every, taken=taken)
    assert not {*chosen} & {*taken}
    assert pairs(every[i] for i in [*chosen, *taken]) == pairs(every)


def test_values_that_cannot_be_hashed_are_told_apart():
    every = rows(a=[{"x": 1}, {"x": 2}], b="xy", c="uv")
    chosen = [every[i] for i in covering(every)]
    assert {(str(row["a"]), row["b"]) for row in chosen} == {
        (str(a), b) for a in ({"x": 1}, {"x": 2}) for b in "xy"
    }
    assert len(chosen) < len(every)


def test_parameters_that_are_given_together_are_one(pytester):
    pytester.makeconftest(
        """
        from helpers.covering import surplus

        def pytest_configure(config):
            config.addinivalue_line("markers", "covering: pairs")

        def pytest_collection_modifyitems(items):
            left = surplus(items)
            items[:] = [item for item in items if item not in left]
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.covering
        @pytest.mark.parametrize(("operand", "scheme"), [("q", "a"), ("k", "a"), ("k", "b")])
        @pytest.mark.parametrize("head_dim", [64, 128])
        @pytest.mark.parametrize("dtype", ["x", "y"])
        def test_marked(operand, scheme, head_dim, dtype):
            pass

        @pytest.mark.parametrize("n", [1, 2, 3])
        def test_other(n):
            pass
        """
    )
    # 3 ways x 2 sizes, of 12; the other test has no mark.
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=6 + 3)
