"""Specs beside the C++ structs that they are the mirror of."""

import re
from dataclasses import fields

from cuattn.compile.sources import sources


def members(struct, header):
    """Return the names of a struct's members in the order of their declaration."""
    body = re.search(rf"struct {struct} {{(.*?)}};", sources()[header], re.DOTALL)[1]
    return re.findall(r"^\s*\w+ (\w+);", body, re.MULTILINE)


def named(literal):
    """Return the members that a literal names, in its order; not those of a struct in it."""
    return re.findall(r"\.(\w+) = ", re.sub(r"= \w+\{[^{}]*\}", "= ", literal))


def begins_with_its_fields(spec, header):
    """Fail unless a literal names every member in order, those that are the spec's fields first.

    A member that the literal leaves out would silently be zero.
    """
    wanted = members(type(spec).__name__, header)
    assert named(spec.cxx()) == wanted
    assert [f.name for f in fields(spec)] == wanted[: len(fields(spec))]
