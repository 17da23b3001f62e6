"""How the tokens of a cache are shared among workers that decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..common.sizes import ceil_div
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from .arrays import whole_counts

__all__ = ["BLOCK", "LEAST_PART", "Piece", "most_parts", "own_parts", "partition"]

# Tokens that one step of P is for; workers share whole blocks.
BLOCK = 128

# Blocks of a part of a batch-invariant call, at least.
LEAST_PART = 8

_MOST_TOKENS = 2**31 - 1

# Parts of a share that it may be rounded up by.
WHOLES = 16


@dataclass(frozen=True)
class Piece:
    """Neighbouring blocks of one head of K and V of a sequence."""

    sequence: int
    head: int
    blocks: range


def partition(
    lengths: ArrayLike, heads: int, workers: int, recent_units: int = 0
) -> list[list[Piece]]:
    """Share the blocks of all heads among workers, equally: stream-K, as LeanAttention has it.

    The blocks of all sequences lie in one list, by sequence, head and block. Of its T blocks every
    worker takes `share_of` (T, workers) that follow each other, as long as there are any. So a
    worker has at most two heads that it does not have to itself.

    Blocks of nested codes that have lower halves take about twice as long: the list has an empty
    place behind the blocks of a head for each of those at its end. And where every head may have as
    many workers as any other, with shares that are a sixteenth longer at most, it has places ahead
    of a head's blocks that make the last share a full one, so that no worker has two heads.

    Parameters
    ----------
    lengths : array_like of int [batch]
        Tokens of each sequence.
    heads : int
        Heads of K and V.
    workers : int
    recent_units : int
        Units at the end of each sequence whose nested codes have lower halves, 0 if codes are not
        nested.

    Returns
    -------
    list of list of Piece
        The pieces of each worker, in their order.

    Raises
    ------
    ArgumentError
        For lengths that are not whole numbers, or no heads or workers.
    """
    if heads < 0:
        raise ArgumentError("heads", heads, "at least 0")
    if workers < 1:
        raise ArgumentError("workers", workers, "at least 1")
    counts = whole_counts("lengths", lengths, np.size(lengths), _MOST_TOKENS).tolist()
    blocks = [ceil_div(n, BLOCK) for n in counts]
    behind = [_fine_blocks(n, recent_units) for n in counts]
    places = [x + y for x, y in zip(blocks, behind, strict=True)]
    share = share_of(heads * sum(places), workers)
    ahead = [0] * len(places)
    of_head = workers // max(heads * len(places), 1)
    if recent_units and of_head:
        even = ceil_div(max(places), of_head)
        if even <= share + share // WHOLES:
            share = max(even, 1)
            ahead = [-x % share for x in places]
    shares: list[list[Piece]] = [[] for _ in range(workers)]
    begin = 0
    for b in range(len(places)):
        for h in range(heads):
            first = begin + ahead[b]
            end = first + blocks[b]
            for worker in range(first // share, ceil_div(end, share)) if blocks[b] else ():
                of_worker = range(max(worker * share, first), min((worker + 1) * share, end))
                piece = range(of_worker.start - first, of_worker.stop - first)
                shares[worker].append(Piece(b, h, piece))
            begin = first + places[b]
    return shares


def _fine_blocks(length: int, recent_units: int) -> int:
    """Return in how many blocks the newest units of a sequence lie."""
    if not recent_units:
        return 0
    first = max(ceil_div(length, UNIT_TOKENS) - recent_units, 0) * UNIT_TOKENS // BLOCK
    return ceil_div(length, BLOCK) - first


def own_parts(length: int, most: int) -> list[range]:
    """Return the blocks of the parts of a head that depend on its own length only.

    Parameters
    ----------
    length : int
        Tokens of the sequence.
    most : int
        From `most_parts`.
    """
    blocks = ceil_div(length, BLOCK)
    size = max(ceil_div(blocks, most), LEAST_PART)
    return [range(first, min(first + size, blocks)) for first in range(0, blocks, size)]


def most_parts(workers: int, heads: int, blocks: int) -> int:
    """Return how many parts a head has at most: as many as workers, if the sequence was alone.

    Parameters
    ----------
    workers : int
    heads : int
        Of one sequence: heads of K and V, times the tiles that their queries are.
    blocks : int
        Of the longest sequence that there is room for. Fewer blocks leave the parts of a length as
        they are.
    """
    return max(min(workers // heads, ceil_div(blocks, LEAST_PART)), 1)


def share_of(blocks: int, workers: int) -> int:
    """Return the blocks of a worker, so many that the workers suffice.

    From 16 on they are rounded up, by a sixteenth at most, to a multiple of a power of two: then
    shares end where heads do if their lengths are powers of two.
    """
    share = ceil_div(blocks, workers)
    if share < WHOLES:
        return share
    granule = 1 << (share // WHOLES).bit_length() - 1
    return ceil_div(share, granule) * granule
