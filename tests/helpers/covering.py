"""Covering arrays: a few of many specs that have every pair of properties that any of all has."""

from collections import Counter
from dataclasses import fields
from heapq import heapify, heappop, heappush
from itertools import chain, combinations, groupby

# Fields that the planner's tables decide by the others.
PLANNED = {
    *("block_kv", "num_warps", "row_tiles", "stages", "q_in_registers", "min_ctas"),
    *("groups", "q_buffers", "value_slice", "order", "group_registers"),
}


def pairwise(specs, chosen=()):
    """Choose specs so that in each family any two fields meet with every pair of values.

    Of the pairs, those that any of `specs` has, and none of `chosen`. Each time the spec is taken
    that has most of those that are left: a covering array of strength 2, close to the smallest.
    """
    found = []
    by_family = sorted(dict.fromkeys(specs), key=lambda spec: type(spec).__name__)
    for family, members in groupby(by_family, type):
        members = list(members)
        have = set().union(*(properties(spec) for spec in chosen if type(spec) is family))
        found += [members[i] for i in _cover(map(properties, members), have)]
    return found


def dealt(specs_of):
    """Choose of the specs of several targets as `pairwise` does of all, each for one target.

    `specs_of` has the specs of each. Of the targets that have one with the same properties, it goes
    to that which has least of its family so far.
    """
    own = {target: {_values(spec): spec for spec in specs} for target, specs in specs_of.items()}
    hands = {target: [] for target in specs_of}
    held = Counter()
    for spec in pairwise(chain.from_iterable(specs_of.values())):
        able = [target for target in specs_of if _values(spec) in own[target]]
        target = min(able, key=lambda target: held[target, type(spec)])
        held[target, type(spec)] += 1
        hands[target].append(own[target][_values(spec)])
    return hands


def properties(spec):
    """Every field of a spec with its value, and every two of them."""
    family, *values = _values(spec)
    return {(family,), *((value,) for value in values), *combinations(values, 2)}


def _values(spec):
    names = (field.name for field in fields(spec) if field.name not in PLANNED)
    return type(spec), *((name, getattr(spec, name)) for name in names)


def _cover(sets, have):
    """Return the indices of some of the sets, whose union with `have` has all that all have."""
    left = [own - have for own in sets]
    missing = set().union(*left)
    # What a set adds only shrinks: an old count is a bound, and few sets have to be counted anew.
    queue = [(-len(own), i) for i, own in enumerate(left)]
    heapify(queue)
    while missing:
        _, i = heappop(queue)
        left[i] &= missing
        if queue and (-len(left[i]), i) > queue[0]:
            heappush(queue, (-len(left[i]), i))
            continue
        missing -= left[i]
        yield i
