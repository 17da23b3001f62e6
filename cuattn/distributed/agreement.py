"""What ranks find out about each other before anything large is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal

from ..errors import ArgumentError, CuattnError, MismatchError
from ..scheme import Scheme
from .group import Group

__all__ = ["CHECKS", "Check", "agree", "described"]

Check = Literal["always", "once"]
CHECKS = ("always", "once")

# Which version of what ranks send to each other this is.
PROTOCOL = 2


def agree(
    group: Group, call: str, described: Mapping[str, Any] | CuattnError, own: Any, check: Check
) -> list[Any]:
    """Find out whether all ranks make the same call, and what each has of its own.

    Parameters
    ----------
    group : Group
    call : str
        The function.
    described : mapping of str to object, or CuattnError
        What has to be equal on all ranks, as JSON can hold it; or what is wrong here.
    own : object
        What may differ: the same.
    check : {"always", "once"}
        With "once" a rank that has agreed on the very same asks nobody again.

    Returns
    -------
    list
        What each rank has of its own, by rank.

    Raises
    ------
    MismatchError
        On every rank, if any two differ or anything is wrong on one.
    RankTimeoutError
        If a rank does not answer in time.
    """
    if check not in CHECKS:
        raise ArgumentError("check", check, f"one of {CHECKS}")
    wrong = described if isinstance(described, CuattnError) else None
    what: dict[str, Any] = {"error": str(described)}
    if not isinstance(described, CuattnError):
        what = {"protocol": PROTOCOL, "call": call, **described}
    message = json.dumps([what, own], sort_keys=True).encode()
    if check == "once" and message in group.agreed:
        return group.agreed[message]
    every = [json.loads(answer) for answer in group.gather_bytes(message)]
    try:
        _compare([answer for answer, _ in every])
    except MismatchError as error:
        raise error from wrong
    group.agreed[message] = [x for _, x in every]
    return group.agreed[message]


@lru_cache(64)
def described(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as `agree` takes it."""
    return asdict(scheme)


def _compare(every: list[dict[str, Any]]) -> None:
    """Check that all say the same.

    Raises
    ------
    MismatchError
        Naming the first field that two ranks differ in.
    """
    for rank, one in enumerate(every):
        if "error" in one:
            raise MismatchError(f"rank {rank}: {one['error']}")
    first = every[0]
    for rank, other in enumerate(every[1:], start=1):
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                here, there = first.get(name), other.get(name)
                raise MismatchError(
                    f"{name} must be equal on all ranks, got {here!r} on rank 0 and {there!r} on "
                    f"rank {rank}"
                )
