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
    whole = seconds_of(lambda: attend(arrays, group, args), group, xp, args.repeats)
    # What a rank computes in a step, without anybody to send to: half of its pairs if causal.
    half = (count + 1) // 2 if args.causal else count
    some = [arrays[0][:, :, :half], *arrays[1:]]
    alone = seconds_of(lambda: cuattn.attention(*some, scheme=args.scheme), group, xp, args.repeats)
    if group.rank == 0:
        step = whole / group.size
        where = "NumPy" if xp is np else "the GPU"
        print(f"{group.size} ranks, {type(group).__name__}, {where}: {args.tokens} tokens")
        print(f"relative L1 error of sampled rows: {100 * error:.2f} %")
        print(
            f"{1e3 * whole:.1f} ms, {1e3 * step:.1f} ms a step; {1e3 * alone:.1f} ms to compute one"
        )
        print(f"{100 * min(1.0, alone / step):.0f} % of a step is computing")
    group.barrier()


if __name__ == "__main__":
    main()
