"""What each process of a launcher does in test_processes.py: all ways once, compared by rank 0.

python between_processes.py {equal, dead, differ} [transport [host or gpu]]
"""

import os
import sys

import numpy as np

from cuattn.distributed import (
    DistributedKVCache,
    all_gather_attention,
    from_environment,
    nodes,
    ring_attention,
    run_virtual,
    shard,
    ulysses_attention,
    usp_attention,
)
from cuattn.errors import DistributedError, MismatchError

TOKENS = 61


def arrays(where="host"):
    xp = np
    if where == "gpu":
        import cupy as xp
    rng = np.random.default_rng(0)
    shapes = [(8, TOKENS), (4, TOKENS), (4, TOKENS)]
    return [xp.asarray(rng.standard_normal((1, *shape, 64)), np.float32) for shape in shapes]


def results(group, where):
    """Return what this rank gets of each way, as bytes."""
    q, k, v = arrays(where)

    def own(placement):
        return [shard(x, group.size, group.rank, placement) for x in (q, k, v)]

    found = []
    for placement in ("zigzag", "contiguous", "striped"):
        options = {"is_causal": True, "placement": placement}
        found.append(ring_attention(*own(placement), group, **options))
        found.append(all_gather_attention(*own(placement), group, **options))
    found.append(ring_attention(*own("zigzag"), group, wire="int4", scheme="int8-block"))
    if 4 % group.size == 0:
        found.append(ulysses_attention(*own("contiguous"), group, is_causal=True))
    if group.size == 4:
        found.append(usp_attention(*own("contiguous"), *nodes(group, 2), placement="contiguous"))
    cache = DistributedKVCache(group, 1, 4, 64, 100, device="cpu" if where == "host" else None)
    cache.append(k, v)
    found.append(cache.attend(q[:, :, -1:]))
    return [np.ascontiguousarray(getattr(x, "get", lambda x=x: x)()).tobytes() for x in found]


def main(what, transport=None, where="host"):
    group = from_environment(transport, timeout=60 if what == "equal" else 3)
    if what == "equal":
        every = [group.gather_bytes(x) for x in results(group, where)]
        group.barrier()
        if group.rank == 0:
            of_ranks = run_virtual(group.size, lambda other: results(other, where))
            assert every == [list(of_call) for of_call in zip(*of_ranks, strict=True)]
            print(type(group).__name__, group.size, len(every), "calls equal")
        return
    if what == "dead" and group.rank == 1:
        os._exit(0)  # without a word to the others
    try:
        own = [shard(x, group.size, group.rank) for x in arrays()]
        ring_attention(*own, group, scale=0.1 * group.rank if what == "differ" else None)
    except MismatchError as error:
        # In one write: launchers join what processes print as it comes.
        os.write(sys.stdout.fileno(), f"{what}: {error}\n".encode())
    except DistributedError as error:
        print(f"dead: {type(error).__name__}", flush=True)
        os._exit(0)  # whoever waits for the dead one when it ends would wait for ever


if __name__ == "__main__":
    main(*sys.argv[1:])
