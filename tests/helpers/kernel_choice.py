"""Of the kernels that there are, those that tests compile: a covering array of their specs."""

from collections import Counter
from dataclasses import fields
from itertools import chain

from helpers.covering import covering

# Fields that the planner's tables decide by the others.
PLANNED = {
    *("block_kv", "num_warps", "row_tiles", "stages", "q_in_registers", "min_ctas"),
    *("groups", "q_buffers", "value_slice", "order", "group_registers"),
}


def pairwise(specs, chosen=()):
    """Choose specs so that in each family any two fields meet with every pair of values.

    Of the pairs, those that any of `specs` has, and none of `chosen`.
    """
    families = {}
    for spec in dict.fromkeys([*chosen, *specs]):
        families.setdefault(type(spec), []).append(spec)
    found = []
    for members in families.values():
        taken = [i for i, spec in enumerate(members) if spec in set(chosen)]
        found += [members[i] for i in covering(list(map(properties, members)), taken=taken)]
    return found


def dealt(specs_of):
    """Choose of the specs of several targets as `pairwise` does of all, each for one target.

    `specs_of` has the specs of each. Of the targets that have one with the same properties, it goes
    to that which has least of its family so far. Then those that have got none of a family get one.
    """
    own = {target: {_key(spec): spec for spec in specs} for target, specs in specs_of.items()}
    hands = {target: [] for target in specs_of}
    held = Counter()
    for spec in pairwise(chain.from_iterable(specs_of.values())):
        able = [target for target in specs_of if _key(spec) in own[target]]
        target = min(able, key=lambda target: held[target, type(spec)])
        held[target, type(spec)] += 1
        hands[target].append(own[target][_key(spec)])
    for target, specs in specs_of.items():
        for spec in specs:
            if not held[target, type(spec)]:
                held[target, type(spec)] += 1
                hands[target].append(spec)
    return hands


def properties(spec):
    """Return what tells a spec from others: its fields but for the planner's, and its family."""
    names = [field.name for field in fields(spec) if field.name not in PLANNED]
    return {"family": type(spec).__name__, **{name: getattr(spec, name) for name in names}}


def _key(spec):
    return frozenset(properties(spec).items())
