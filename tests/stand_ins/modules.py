"""Modules that are made by a test."""

from types import ModuleType


def module(name, **members):
    made = ModuleType(name)
    vars(made).update(members)
    return made


def nested(**by_name):
    """Return modules by full name, each a member of its package; "__" in a name stands for "."."""
    made = {name.replace("__", "."): x for name, x in by_name.items()}
    for name, x in made.items():
        package, _, last = name.rpartition(".")
        if package:
            setattr(made[package], last, x)
    return made
