"""`ring_attention`: keys and values go round, each rank attends to them as they pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..attention import attention
from ..common.public import public
from ..errors import CuattnError
from ..operands.scores import ALL_KEYS
from ..scheme import Scheme
from .agreement import Check, agree
from .call import Call, tokens_of
from .group import Group
from .parcel import Wire
from .parts import Piece
from .placement import Placement, Run, token_axis
from .states import States

__all__ = ["go_round", "ring_attention", "shards_of"]


@public
def ring_attention(
    q: Any,
    k: Any,
    v: Any,
    group: Group,
    *,
    is_causal: bool = False,
    placement: Placement = "zigzag",
    scheme: str | Scheme = "int8",
    wire: Wire = None,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    sinks: Any = None,
    scale: float | None = None,
    layout: str = "HND",
    return_lse: bool = False,
    check: Check = "always",
    timeout: float | None = None,
) -> Any:
    """Attend to a sequence of which each rank of a group has a part.

    K and V are quantized once, before anything is sent, and codes go round with their scales as
    they are: what a rank attends to does not depend on how far it has come. The next part travels,
    on a stream of its own, while a rank attends to the one that it has.

    Parameters
    ----------
    q : array [batch, num_q_heads, tokens of this rank, head_dim]
    k, v : array [batch, num_kv_heads, tokens of this rank, head_dim]
        As for `cuattn.attention`, but no QuantizedTensor: `cuattn.distributed.shard` takes a rank's
        tokens from a whole. With placement "contiguous", ranks may have any number of tokens, none
        too, and K other numbers than Q.
    group : Group
        All its ranks make this call, with equal options.
    is_causal : bool
        Hide the keys behind a row's own in the whole sequence: its last row sees every key.
    placement : {"zigzag", "contiguous", "striped"}
        Which tokens each rank has; see `cuattn.distributed.positions`. Under a causal mask ranks
        have equal work in each step with "zigzag", and nearly with "striped".
    scheme : str or Scheme
        As for `cuattn.attention`. What it leaves unquantized travels as it is.
    wire : {None, "int4", "input"}
        None: codes of the scheme travel. "int4": of a scheme of INT8, K and V are quantized to 4
        bits with a scale per token, and go into the products as integers of 8 bits; Q and P keep 8.
        "input": K and V travel in their own type and each rank quantizes what it receives, which
        gives the result of None and is there to be compared with.
    window_size : (int, int)
        As for `cuattn.attention`, in the whole sequence. Parts that no rank sees are not sent.
    softcap : float
    sinks : array [num_q_heads], optional
        Of the library of `q`, equal on all ranks; they count once.
    scale : float, optional
    layout : {"HND", "NHD"}
        All as for `cuattn.attention`.
    return_lse : bool
        Return the log-sum-exp of the logits too.
    check : {"always", "once"}
        Ranks compare their arguments before each call, which takes a message of a few hundred bytes
        on the host; or only if a rank has not had the same before. With "once" a rank that calls
        with other arguments than the others may run into the timeout.
    timeout : float, optional
        Wait for the call's messages, on a GPU too, and at most for so many seconds. By default the
        host waits for nothing but the comparison, at most `group.timeout`.

    Returns
    -------
    o : array with the shape of `q` but for the head_dim, which is that of `v`, and its type
    lse : array of float32 [batch, num_q_heads, tokens of this rank]
        Only with `return_lse`.

    Raises
    ------
    MismatchError
        On every rank, if an argument is wrong on any or differs between two.
    RankTimeoutError
        If a rank does not answer in time.
    ArgumentError
        In a group of one rank, which is `cuattn.attention`, bit for bit.
    NoGPUError, UnsupportedError, CompileError
        As for `cuattn.attention`.

    Notes
    -----
    Ring Attention (arXiv 2310.01889) with the lse of each part corrected for what smoothing took
    from its keys; parts are merged in float32 in the order of the steps, a rank's own first, so
    results are bitwise reproducible, and those of `all_gather_attention`. Results of parts have the
    type of `q` until they are merged. Those of all steps are kept until then: as much memory as
    `o`, for each step.
    """
    own = k, v
    options = {
        "is_causal": is_causal,
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "scale": scale,
        "scheme": scheme,
        "layout": layout,
        "return_lse": return_lse,
    }
    if group.size == 1 and wire != "int4":
        return attention(q, *own, **options)
    call, tokens, pieces = shards_of(
        "ring_attention", q, k, v, group, check, placement=placement, wire=wire, **options
    )
    with call.on_device(), call.on_stream(q):
        parcel = call.pack(k, v, pieces[group.rank])
        states = States(q, int(v.shape[3]), layout)
        go_round(call, states, q, tokens, pieces, parcel, group)
        o, lse = states.merged(sinks)
        if timeout is not None:
            group.synchronize(timeout)
    return (o, lse) if return_lse else o


def shards_of(
    name: str, q: Any, k: Any, v: Any, group: Group, check: Check, **options: Any
) -> tuple[Call, list[tuple[Run, ...]], list[list[Piece]]]:
    """Check a call with all ranks, and return it with the rows and the keys that each rank has.

    Parameters
    ----------
    name : str
        Of the function.
    q, k, v, group, check
        As for `ring_attention`.
    **options : object
        Of `Call.of`.

    Raises
    ------
    MismatchError, RankTimeoutError
        As `agree`.
    """
    call: Call | None = None
    try:
        call = Call.of(q, k, v, **options)
        said: Any = call.described()
        axis = token_axis(options["layout"])
        lengths = [int(q.shape[axis]), int(k.shape[axis])]
    except CuattnError as error:
        said, lengths = error, [0, 0]
    every = agree(group, name, said, lengths, check)
    assert call is not None  # else every rank has raised
    of_q, of_k = ([own[i] for own in every] for i in (0, 1))
    keys = tokens_of(of_k, call.placement, name="k")
    queries = tokens_of(of_q, call.placement, name="q", shift=sum(of_k) - sum(of_q))
    return call, queries, [call.pieces(runs) for runs in keys]


def go_round(
    call: Call,
    states: States,
    q: Any,
    tokens: Sequence[tuple[Run, ...]],
    pieces: Sequence[Sequence[Piece]],
    parcel: Any,
    group: Group,
) -> None:
    """Attend to the parcels of all ranks as they pass.

    Parameters
    ----------
    call : Call
    states : States
        That results are added to, in the order of the steps.
    q : array
    tokens, pieces : sequence
        Rows and keys of each rank.
    parcel : array of uint8
        This rank's own.
    group : Group
    """
    rank, size = group.rank, group.size
    sizes = [sum(call.sizes(of_rank)) for of_rank in pieces]
    steps = _steps(call, tokens, pieces)
    most = max(sizes) if steps > 1 else 0
    buffers = [call.xp.empty(most, "uint8") for _ in range(min(steps - 1, 2))]
    for step in range(steps):
        source = (rank - step) % size
        transfer = None
        if step + 1 < steps:
            following = buffers[step % 2][: sizes[(source - 1) % size]]
            transfer = group.send_receive(parcel, following, (rank + 1) % size, (rank - 1) % size)
        call.attend(states, q, tokens[rank], pieces[source], parcel)
        if transfer is not None:
            transfer.wait()
            parcel = following


def _steps(call: Call, tokens: Sequence[tuple[Run, ...]], pieces: Sequence[Sequence[Piece]]) -> int:
    """Return after how many steps no rank sees anything more."""
    size = len(tokens)
    for step in range(size - 1, 0, -1):
        if any(call.sees(tokens[rank], pieces[(rank - step) % size]) for rank in range(size)):
            return step + 1
    return 1
