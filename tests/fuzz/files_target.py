"""Files that are read: of Q, K and V, of a KV cache, of a plan; valid ones with bytes changed.

Reading ends well or in an exception of ours, soon, whatever the bytes are.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import cuattn
from cuattn.reference import files

# A file of a few kilobytes that takes longer makes somebody wait for nothing.
LONGEST = 5.0

KINDS = ("qkv.npz", "qkv_compressed.npz", "qkv.safetensors", "cache.safetensors", "plan.json")

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "zeros"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=16),
    ),
    min_size=0,
    max_size=4,
)


def valid():
    """Return the bytes of a valid file of each kind."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 2, 8, 16)).astype(np.float16) for name in "qkv"}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / kind for kind in KINDS}
        np.savez(paths["qkv.npz"], **arrays)
        np.savez_compressed(paths["qkv_compressed.npz"], **arrays)
        from safetensors.numpy import save_file

        save_file(arrays, paths["qkv.safetensors"])
        cache = cuattn.KVCache(1, 2, 64, 40, bits=4, page_size=16, device="cpu")
        k, v = rng.standard_normal((2, 1, 2, 30, 64)).astype(np.float16)
        cache.append(k, v)
        cache.save(paths["cache.safetensors"])
        x = [arrays[name] for name in "qkv"]
        cuattn.plan_schemes({"layer": x}, max_relative_l1=0.5).save(paths["plan.json"])
        for kind, path in paths.items():
            found[kind] = path.read_bytes()
    return found


def edited(data, edits):
    for kind, where, chunk in edits:
        at = int(where * (len(data) + 1))
        if kind == "flip":
            data = (
                data[:at]
                + bytes(a ^ b for a, b in zip(data[at:], chunk, strict=False))
                + data[at + min(len(chunk), len(data) - at) :]
            )
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + chunk + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 64] + data[at:]
        else:
            data = data[:at] + bytes(len(chunk)) + data[at + len(chunk) :]
    return data


READERS = {
    ".npz": files.load,
    ".safetensors": files.load,
    ".json": cuattn.SchemePlan.load,
}


def run(place, count, configured, config, seed):
    del place, config, seed
    originals = valid()

    @given(kind=st.sampled_from(KINDS), edits=EDITS)
    def read(kind, edits):
        data = edited(originals[kind], edits)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kind
            path.write_bytes(data)
            reader = READERS[path.suffix]
            if kind.startswith("cache"):
                reader = lambda path: cuattn.KVCache.load(path, device="cpu")  # noqa: E731
            start = time.monotonic()
            try:
                reader(path)
            except cuattn.CuattnError:
                assert data != originals[kind]
                count("refused")
            else:
                count("read")
            assert time.monotonic() - start < LONGEST

    configured(read)()
