"""Of the combinations of a test's parameters so many that every pair of values occurs.

A test with the mark `covering` is run with those, and with all of them on request. What a kernel
does depends on pairs, at most: of a scheme and a head dimension, a type and a layout.
"""

import heapq
from itertools import combinations

__all__ = ["covering", "surplus"]


def surplus(items):
    """Return the items of marked tests that are left out: other items have all their pairs.

    The mark may have keywords that say what matters of a parameter: a function of its value, or
    several. Then its pairs are those of what they return; each value itself occurs all the same.
    """
    tests = {}
    for item in items:
        if item.get_closest_marker("covering") is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left = []
    for some in tests.values():
        features = some[0].get_closest_marker("covering").kwargs
        rows = _joined(some)
        chosen = set(covering(rows, features))
        left += [item for i, item in enumerate(some) if i not in chosen]
    return left


def _joined(items):
    """Return rows of values by parameter; those that are given together are one parameter."""
    groups = []
    for mark in items[0].iter_markers("parametrize"):
        names = mark.args[0]
        names = names.split(",") if isinstance(names, str) else names
        groups.append(tuple(name.strip() for name in names))
    given = {name for names in groups for name in names}
    # Of fixtures.
    groups += [(name,) for name in items[0].callspec.params if name not in given]
    rows = []
    for item in items:
        params = item.callspec.params
        rows.append(
            {
                "+".join(names): params[names[0]]
                if len(names) == 1
                else tuple(_key(params[name]) for name in names)
                for names in groups
            }
        )
    return rows


def covering(rows, features=None, taken=()):
    """Return the indices of rows, few of them, that have everything there is in any row.

    Parameters
    ----------
    rows : list of dict
        Values by parameter.
    features : dict, optional
        By parameter a function, or several, of the values: what pairs are made of.
    taken : iterable of int
        Indices of rows that are there in any case.

    Returns
    -------
    list of int
        Others than those taken, in ascending order. Greedy, so not always the fewest; the same in
        every run.
    """
    wanted = [_elements(row, features or {}) for row in rows]
    missing = set().union(*wanted).difference(*(wanted[i] for i in taken))
    # The gain of a row only ever shrinks, so an old one that is still the greatest is.
    heap = [(-len(some), i) for i, some in enumerate(wanted)]
    heapq.heapify(heap)
    chosen = []
    while missing:
        old, i = heapq.heappop(heap)
        gain = len(wanted[i] & missing)
        if gain == -old:
            chosen.append(i)
            missing -= wanted[i]
        elif gain:
            heapq.heappush(heap, (-gain, i))
    return sorted(chosen)


def _elements(row, features):
    """Return the values of a row, and its pairs of features of different parameters."""
    singles = {(name, _key(value)) for name, value in row.items()}
    told = []
    for name, value in row.items():
        of = features.get(name, _key)
        several = of if isinstance(of, (list, tuple)) else (of,)
        told.append([(name, k, _key(f(value))) for k, f in enumerate(several)])
    pairs = {(a, b) for some, others in combinations(told, 2) for a in some for b in others}
    return singles | pairs


def _key(value):
    """Return something hashable that tells values apart in every process alike."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
