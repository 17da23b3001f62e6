"""Changes of a KV cache that the host plans and checks before anything is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.sizes import is_whole_number
from ..errors import ArgumentError, UnsupportedError
from ..reference.arrays import whole_numbers
from ..reference.kv_offsets import FIRST_TOKENS
from .host_state import HostState
from .pages import Entries
from .sharing import Copies, own_pages, rearranged

__all__ = ["Plan", "appended", "owning", "reordered", "reserving", "truncated", "unplanned"]


class Plan(NamedTuple):
    """A change of a cache that has passed every check.

    Attributes
    ----------
    after : HostState
        What the host knows when it is done.
    entries : Entries or None
        What is new in the page table.
    begins : bool
        Whether sequences get tokens that have, or have had, only first ones: `FIRST_TOKENS`.
    copies : Copies or None
        Pages whose contents others get first. Then all of the page table may have changed.
    """

    after: HostState
    entries: Entries | None = None
    begins: bool = False
    copies: Copies | None = None


def appended(
    host_state: HostState,
    counts: NDArray[np.int64] | int,
    shape: tuple[int, ...],
    name: str = "k",
) -> Plan:
    """Plan an append to lengths that are known.

    Parameters
    ----------
    host_state : HostState
    counts : ndarray of int64 [batch], or int for all sequences
    shape : tuple of int
        Of the caller's tokens, for the error.
    name : str
        What these are called.

    Raises
    ------
    ArgumentError
        If a sequence has no room for its tokens.
    """
    lengths = host_state.lengths + counts
    begins = bool((lengths > host_state.lengths)[host_state.lengths <= FIRST_TOKENS].any())
    shares = host_state.pages is not None and host_state.pages.extra is not None
    if not shares and (lengths <= host_state.limits).all():
        return Plan(host_state.learned(lengths), None, begins)
    capacity = host_state.geometry.capacity
    b = int(np.argmax(lengths))
    if lengths[b] > capacity:
        before = host_state.lengths[b]
        expected = (
            f"of at most {capacity - before} tokens for sequence {b}, which has {before} of "
            f"{capacity} and was to get {lengths[b] - before}"
        )
        raise ArgumentError(name, shape, expected)
    plan = owning(host_state, np.where(lengths > host_state.lengths, lengths, 0), name, shape)
    after, entries, _, _ = _with_room(plan.after, lengths, name, shape)
    return Plan(after.learned(lengths), entries, begins, plan.copies)


def reserving(host_state: HostState, tokens: int) -> Plan:
    """Plan to give every sequence the pages for a number of tokens, until all are emptied.

    Raises
    ------
    ArgumentError
        If it is more than the capacity, or than the free pages have room for.
    """
    capacity = host_state.geometry.capacity
    if not is_whole_number(tokens) or not 0 <= tokens <= capacity:
        raise ArgumentError("tokens", tokens, f"a whole number from 0 to {capacity}")
    wanted = np.full_like(host_state.lengths, tokens)
    plan = owning(host_state, np.maximum(wanted, host_state.lengths + 1), "tokens", tokens)
    after, entries, _, _ = _with_room(plan.after, wanted, "tokens", tokens)
    after = after._replace(reserved=max(host_state.reserved, tokens))
    return Plan(after, entries, copies=plan.copies)


def truncated(host_state: HostState, lengths: ArrayLike) -> Plan:
    """Shorten sequences; pages that no token is in, and none was reserved in, are free.

    Raises
    ------
    ArgumentError
        If a length is not a whole number from 0 to what it is.
    """
    given = whole_numbers("lengths", lengths, host_state.lengths.shape)
    wrong = (given < 0) | (given > host_state.lengths)
    if wrong.any():
        b = int(np.argmax(wrong))
        expected = f"from 0 to {host_state.lengths[b]} for sequence {b}, not {given[b]}"
        raise ArgumentError("lengths", lengths, expected)
    after = host_state.learned(given.astype(np.int64))
    if host_state.evicted is not None:
        after = after._replace(
            evicted=host_state.evicted.shortened(after.lengths, host_state.lengths, lengths)
        )
    if host_state.pages is None:
        return Plan(after)
    pages = host_state.pages.taken_back(np.maximum(after.lengths, host_state.reserved))
    return _appendable(after.with_pages(pages), "lengths", lengths)


def reordered(host_state: HostState, sources: NDArray[np.int64], name: str, value: Any) -> Plan:
    """Plan to give sequence b what sequence ``sources[b]`` has; pages are shared.

    Raises
    ------
    ArgumentError
        Naming the argument that wants more pages than are free, where graphs append.
    UnsupportedError
        If the pages are the caller's.
    """
    after = host_state.learned(host_state.lengths[sources])
    if host_state.evicted is not None:
        after = after._replace(evicted=host_state.evicted.of(sources))
    if host_state.pages is None:
        return Plan(after)
    host_state.check_own(f"{name} shares pages")
    stays = sources == np.arange(len(sources))
    kept = np.where(
        stays, host_state.pages.counts, -(-after.lengths // host_state.geometry.page_size)
    )
    after = after.with_pages(rearranged(host_state.pages, sources, kept))
    return _appendable(after, name, value)


def unplanned(host_state: HostState, tokens: int, *, captured: bool) -> Plan:
    """Plan an append of which the host will not know how many tokens there are.

    Parameters
    ----------
    host_state : HostState
    tokens : int
        Most of a sequence.
    captured : bool
        Whether it is captured into a graph.

    Raises
    ------
    ArgumentError
        If pages are shared that tokens may come to lie in, and there are too few for copies.
    UnsupportedError
        If they are, and cannot be copied, as the append is captured.
    """
    plan = owning(host_state, host_state.lengths + tokens, "k", tokens)
    if captured and plan.copies is not None:
        text = "an append to pages that sequences share cannot be captured into a graph"
        raise UnsupportedError(f"{text}: reserve() gives them pages of their own")
    begins = host_state.may_begin
    return Plan(plan.after.forgotten(replayed=captured), None, begins, plan.copies)


def _appendable(host_state: HostState, name: str, value: Any) -> Plan:
    """Give sequences the pages of their own that a graph may append to, if one does.

    Raises
    ------
    ArgumentError
        Naming the argument that wants more pages than are free.
    """
    if not (host_state.is_replayed or host_state.reserved):
        return Plan(host_state)
    reserved = np.full_like(host_state.lengths, host_state.reserved)
    begin = np.zeros_like(host_state.lengths) if host_state.is_cut else host_state.lengths
    plan = owning(host_state, np.maximum(reserved, host_state.lengths + 1), name, value, begin)
    after, entries, _, _ = _with_room(plan.after, reserved, name, value)
    return Plan(after, entries, copies=plan.copies)


def owning(
    host_state: HostState, tokens: NDArray[np.int64], name: str, value: Any, begin: Any = None
) -> Plan:
    """Plan to give sequences pages of their own where tokens are to be appended.

    Parameters
    ----------
    host_state : HostState
    tokens : ndarray of int64 [batch]
        How many there are to be then.
    name, value
        As for `own_pages`.
    begin : ndarray of int64 [batch], optional
        The first token that is written, by default the next one.

    Raises
    ------
    ArgumentError
        Naming the argument that wants more pages than are free.
    """
    # Who lets lengths be unknown has seen to it that nothing shared can be written.
    if host_state.pages is None or host_state.pages.extra is None or not host_state.is_known:
        return Plan(host_state)
    size = host_state.geometry.page_size
    first, last = (host_state.lengths if begin is None else begin) // size, -(-tokens // size)
    pages, copies = own_pages(host_state.pages, host_state.lengths, first, last, name, value)
    return Plan(host_state if copies is None else host_state.with_pages(pages), copies=copies)


def _with_room(host_state: HostState, tokens: NDArray[np.int64], name: str, value: Any) -> Plan:
    if host_state.pages is None:
        return Plan(host_state)
    pages, entries = host_state.pages.given(tokens, name, value)
    return Plan(host_state if entries is None else host_state.with_pages(pages), entries)
