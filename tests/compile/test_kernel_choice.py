"""The choice of kernels that are compiled: what it has to meet, and that it is a small one."""

from dataclasses import dataclass
from itertools import combinations, product

from helpers.kernel_choice import dealt, pairwise, properties


@dataclass(frozen=True)
class Tile:
    width: int
    type: str
    masked: bool
    stages: int = 2  # the planner's


@dataclass(frozen=True)
class Sum:
    width: int


@dataclass(frozen=True)
class Plain:
    pass


def tiles(stages=2):
    # Wide tiles have no mask.
    kinds = product((32, 64, 96, 128), ("a", "b", "c"), (False, True))
    return [Tile(*kind, stages) for kind in kinds if kind[0] < 128 or not kind[2]]


def met(specs):
    """Return all values of properties and pairs of them."""
    items = [properties(spec).items() for spec in specs]
    return {some for own in items for n in (1, 2) for some in combinations(own, n)}


SPECS = [*tiles(), *map(Sum, range(3)), Plain()]


def test_every_pair_that_there_is_is_met():
    chosen = pairwise(SPECS)
    assert met(chosen) == met(SPECS)
    assert set(chosen) <= set(SPECS)
    # Width and type alone make 12 pairs.
    assert sum(isinstance(spec, Tile) for spec in chosen) == 12 < len(tiles())
    assert pairwise(SPECS) == chosen


def test_what_is_chosen_already_is_not_chosen_for_again():
    first = [spec for spec in tiles() if spec.type == "a"]
    more = pairwise(SPECS, first)
    assert met(first) | met(more) == met(SPECS)
    assert len(more) < len(pairwise(SPECS))
    assert pairwise(SPECS, SPECS) == []


def test_fields_of_the_planner_make_no_pairs():
    assert len(pairwise([*tiles(2), *tiles(3)])) == len(pairwise(tiles()))


def test_targets_share_what_all_have():
    few = [spec for spec in tiles(3) if spec.type != "c"]
    hands = dealt({"old": few, "new": SPECS})
    assert met(hands["old"]) | met(hands["new"]) == met(SPECS)
    # Each has its own specs, and about as many of those that both have.
    assert set(hands["old"]) <= set(few)
    assert set(hands["new"]) <= set(SPECS)
    assert abs(len(hands["old"]) - sum(s.__class__ is Tile for s in hands["new"])) <= 4
    assert [spec for spec in hands["new"] if isinstance(spec, Sum)] == list(map(Sum, range(3)))


def test_every_target_gets_one_of_each_family():
    hands = dealt({target: [Plain(), *map(Sum, range(2))] for target in "abc"})
    assert all(Plain() in specs for specs in hands.values())
    assert [sum(isinstance(spec, Sum) for spec in specs) for specs in hands.values()] == [1, 1, 1]


def test_nothing_is_chosen_of_nothing():
    assert pairwise([]) == []
