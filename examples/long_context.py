"""One attention layer over more tokens than one GPU should have, on as many processes as started.

mpiexec -n 2 python examples/long_context.py --tokens 1024
torchrun --nproc-per-node 8 examples/long_context.py --tokens 1048576 --scheme int8-block

Each process makes the tokens that it has, attends to those of all, and rank 0 tells the error of a
few rows against float64, the time of a call and of its steps, and how much of the sending was
hidden behind the computing. Without a GPU the processes compute in NumPy.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

import cuattn
from cuattn import distributed
from cuattn.reference import exact

HEAD_DIM = 128


def made(xp: Any, seed: int, heads: int, positions: Any) -> Any:
    """Return a token's vectors by its position: any process makes the same."""
    shape = 1, heads, len(positions), HEAD_DIM
    x = np.empty(shape, np.float16)
    for i, position in enumerate(positions):
        rng = np.random.default_rng((seed, int(position)))
        x[0, :, i] = rng.standard_normal((heads, HEAD_DIM), np.float32)
    return xp.asarray(x)


def at_random(xp: Any, seed: int, heads: int, count: int) -> Any:
    """Return vectors that only this process knows: what many tokens are timed with."""
    if xp is np:
        return (
            np.random.default_rng(seed)
            .standard_normal((1, heads, count, HEAD_DIM), np.float32)
            .astype(np.float16)
        )
    rng = xp.random.default_rng(seed)
    return rng.standard_normal((1, heads, count, HEAD_DIM), np.float32).astype(np.float16)


def error_of_rows(group: Any, args: argparse.Namespace, xp: Any, tokens: int) -> float:
    """Return the relative L1 error of the last rows of each rank, of so many tokens in all."""
    own = distributed.positions(tokens, group.size, group.rank, args.placement)
    arrays = [made(xp, seed, heads, own) for seed, heads in enumerate(heads_of(args))]
    o = attend(arrays, group, args)
    rows = own[-4:]
    whole = np.arange(tokens)
    q, k, v = (
        made(np, n, h, at)
        for n, (h, at) in enumerate(zip(heads_of(args), (rows, whole, whole), strict=True))
    )
    mask = whole[None, :] <= rows[:, None] if args.causal else None
    wanted, _ = exact.attention(q, k, v, attn_mask=mask)
    found = np.asarray(o.get() if hasattr(o, "get") else o, np.float64)[:, :, -len(rows) :]
    sums = np.abs(found - wanted).sum(), np.abs(wanted).sum()
    every = [json.loads(x) for x in group.gather_bytes(json.dumps(sums).encode())]
    return sum(x[0] for x in every) / sum(x[1] for x in every)


def heads_of(args: argparse.Namespace) -> tuple[int, int, int]:
    return args.heads, args.kv_heads, args.kv_heads


def attend(arrays: list[Any], group: Any, args: argparse.Namespace) -> Any:
    options = {"is_causal": args.causal, "scheme": args.scheme, "wire": args.wire}
    return distributed.ring_attention(*arrays, group, placement=args.placement, **options)


def seconds_of(call: Any, group: Any, xp: Any, repeats: int) -> float:
    """Return the median of calls that all ranks begin at once and that are waited for."""
    found = []
    for _ in range(repeats + 1):
        group.barrier()
        start = time.perf_counter()
        call()
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()
        found.append(time.perf_counter() - start)
    return float(np.median(found[1:]))


def sending(group: Any, sizes: list[int], xp: Any) -> Any:
    """Return a call that sends as many bytes as a ring does, and does nothing else."""
    every = [json.loads(x) for x in group.gather_bytes(json.dumps(sizes).encode())]
    sizes = [max(of_step) for of_step in zip(*every, strict=True)]
    send, receive = (xp.zeros(max(sizes, default=0), np.uint8) for _ in range(2))
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size

    def call() -> None:
        for size in sizes:
            group.send_receive(send[:size], receive[:size], to, source).wait()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of the whole sequence")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--wire", choices=["int4", "input"])
    parser.add_argument(
        "--placement", default="zigzag", choices=["zigzag", "contiguous", "striped"]
    )
    parser.add_argument("--no-mask", dest="causal", action="store_false")
    parser.add_argument("--transport", choices=["nccl", "mpi", "torch"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    group = distributed.from_environment(args.transport, timeout=600)
    xp = np
    if cuattn.gpu_available():
        import cupy as xp
    error = error_of_rows(group, args, xp, min(args.tokens, 2048))
    count = len(distributed.positions(args.tokens, group.size, group.rank, args.placement))
    arrays = [at_random(xp, 3 * group.rank + n, h, count) for n, h in enumerate(heads_of(args))]
    muted = distributed.MutedGroup(group)
    attend(arrays, muted, args)
    whole = seconds_of(lambda: attend(arrays, group, args), group, xp, args.repeats)
    computing = seconds_of(lambda: attend(arrays, muted, args), group, xp, args.repeats)
    alone = seconds_of(sending(group, muted.sizes, xp), group, xp, args.repeats)
    if group.rank == 0:
        where = "NumPy" if xp is np else "the GPU"
        print(f"{group.size} ranks, {type(group).__name__}, {where}: {args.tokens} tokens")
        print(f"relative L1 error of sampled rows: {100 * error:.2f} %")
        print(f"{1e3 * whole:.1f} ms, {1e3 * whole / group.size:.1f} ms a step")
        if muted.sizes:
            hidden = 1 - max(0.0, whole - computing) / alone
            print(f"{1e3 * computing:.1f} ms without sending, which takes {1e3 * alone:.1f} ms by")
            print(f"itself: {100 * max(0.0, hidden):.0f} % of that was hidden")
    group.leave()


if __name__ == "__main__":
    main()
