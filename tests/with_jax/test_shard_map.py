"""`cuattn.jax` on several devices: JAX makes two of host memory, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("jax")

PROGRAM = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
import cuattn, cuattn.jax

assert jax.device_count() == 2
q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 24, 2, 32))
mesh = Mesh(np.array(jax.devices()), ("batch",))
shard_map = jax.shard_map if hasattr(jax, "shard_map") else None
if shard_map is None:
    from jax.experimental.shard_map import shard_map
expected = cuattn.attention(q, k, v, layout="NHD", is_causal=True)
for way in ("ffi", "callback"):
    def attend(q, k, v):
        return cuattn.jax.dot_product_attention(q, k, v, is_causal=True, implementation=way)
    axis = P("batch")
    split = jax.jit(shard_map(attend, mesh=mesh, in_specs=(axis,) * 3, out_specs=axis))
    for _ in range(3):
        o = split(q, k, v)
        assert len(o.sharding.device_set) == 2
        np.testing.assert_array_equal(np.asarray(o), np.asarray(expected))
print("the same")
"""


def test_devices_have_their_parts_of_the_batch():
    flags = "--xla_force_host_platform_device_count=2"
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "the same\n", done.stderr
