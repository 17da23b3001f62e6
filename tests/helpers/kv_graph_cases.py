"""A step of generation that is captured, beside one that is called."""

import numpy as np

from helpers.gpu_cases import on_host


def replay_while_sequences_grow(
    cupy, rng, caches, begin, arrays, steps, *, given=None, renew=lambda: None
):
    """Replay a captured step of one cache with new numbers, and call each of another one.

    Parameters
    ----------
    caches : (KVCache, KVCache)
        Of the same contents: the one whose steps are captured, and the one that is called.
    begin : list of int
        The tokens of each sequence.
    arrays : tuple of array
        Q, K and V of a step, which are filled anew.
    given : dict, optional
        What is asked for besides.
    renew : callable
        Fills what is in that anew.
    """
    captured, eager = caches
    q, k, v = arrays
    given = {} if given is None else given
    out = cupy.empty_like(q)
    for cache in caches:  # a call of each kind before any is captured
        cache.append(k, v)
        cache.attend(q, out=out, **given)
        cache.truncate(begin)
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        with cupy.cuda.using_allocator(pool.malloc):
            captured.attend(q, out=out, **given)  # so that the pool has what a capture needs
            stream.begin_capture()
            captured.append(k, v)
            captured.attend(q, out=out, **given)
            graph = stream.end_capture()
        for _ in range(steps):
            for to in arrays:
                to[...] = cupy.asarray(rng.standard_normal(to.shape).astype(np.float16))
            renew()
            graph.launch(stream)
            eager.append(k, v)
            wanted = eager.attend(q, **given)
            stream.synchronize()
            assert on_host(out).tobytes() == on_host(wanted).tobytes()
