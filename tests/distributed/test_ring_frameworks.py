"""Rings of arrays of PyTorch and JAX, which give theirs back."""

import numpy as np
import pytest
from ring_cases import inputs, over_ranks, relative_l1, sharded

from cuattn.distributed import (
    DistributedKVCache,
    all_gather_attention,
    ring_attention,
    run_virtual,
    ulysses_attention,
    unshard,
)
from cuattn.reference import exact

WAYS = {"ring": ring_attention, "all-gather": all_gather_attention}


def as_numpy(x):
    return np.asarray(x.float() if hasattr(x, "float") else x, np.float32)


def check(own, wire, is_window):
    """Attend over arrays of a library each way, and return the results."""
    window = (40, 9) if is_window else (-1, 0)
    found = {}
    for name, attend in WAYS.items():

        def work(group, attend=attend):
            options = {"placement": "striped", "wire": wire, "window_size": window}
            return attend(*sharded(own, group, "striped"), group, **options)

        found[name] = unshard(run_virtual(2, work), "striped")
    wanted, _ = exact.attention(*map(as_numpy, own), window_size=window)
    for o in found.values():
        assert type(o) is type(own[0])
        assert o.dtype == own[0].dtype
        assert relative_l1(as_numpy(o), wanted) < 0.02
    return found


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wire", [None, "input"])
def test_tensors_of_pytorch(rng, dtype, wire):
    import torch

    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in inputs(rng, 101)]
    check(tensors, wire, is_window=False)
    check(tensors, wire, is_window=True)

    def work(group):
        own = sharded(tensors, group, "contiguous")
        cache = DistributedKVCache(group, 1, 2, 64, 200, device="cpu")
        cache.append(*tensors[1:])
        return ulysses_attention(*own, group), cache.attend(tensors[0][:, :, -3:])

    results = run_virtual(2, work)
    wanted, _ = exact.attention(*[x.float().numpy() for x in tensors])
    o = unshard([o for o, _ in results], "contiguous")
    assert o.dtype == results[0][1].dtype == tensors[0].dtype
    assert relative_l1(o.float().numpy(), wanted) < 0.02


@pytest.mark.needs("jax")
@pytest.mark.parametrize("wire", [None, "input"])
def test_arrays_of_jax(rng, wire):
    import jax.numpy as jnp

    arrays = inputs(rng, 60, np.float16)
    own = [jnp.asarray(x) for x in arrays]
    found = check(own, wire, is_window=False)
    check(own, wire, is_window=True)
    if own[0].device.platform != "cpu":  # then kernels have attended, not the emulation
        import cupy

        arrays = [cupy.asarray(x) for x in arrays]
    o, _ = over_ranks(ring_attention, arrays, 2, "striped", is_causal=True)
    o = o if isinstance(o, np.ndarray) else o.get()
    np.testing.assert_array_equal(np.asarray(found["ring"]), o)
