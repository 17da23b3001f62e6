"""Arrays of the types that cuattn takes, and the ways in which they may lie in memory."""

import numpy as np
import pytest
from hypothesis import strategies as st

from cuattn.reference.layout import pad_head_dim

DTYPES = ("float16", "bfloat16", "float32")


def storage(x, dtype):
    """The array in a type that NumPy has: bfloat16 as its bits."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def as_float32(stored, dtype):
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


# Axes [batch, head, token, head_dim] of arrays with these values, by how they lie in memory.
def sliced(x, before, after):
    wide = np.pad(x, [(0, 0)] * 3 + [(before, after)])
    return lambda xp: xp.asarray(wide)[..., before : before + x.shape[3]]


MEMORY = {
    "contiguous": lambda x: lambda xp: xp.asarray(x),
    "tokens outside heads": lambda x: (
        lambda xp: xp.asarray(np.ascontiguousarray(x.transpose(0, 2, 1, 3))).transpose(0, 2, 1, 3)
    ),
    "batch inside": lambda x: (
        lambda xp: xp.asarray(np.ascontiguousarray(x.transpose(1, 2, 0, 3))).transpose(2, 0, 1, 3)
    ),
    "aligned gaps": lambda x: sliced(x, 8, 16),
    "odd base": lambda x: sliced(x, 1, 7),
    "odd stride": lambda x: sliced(x, 0, 1),
    "every other token": lambda x: lambda xp: xp.asarray(np.repeat(x, 2, axis=2))[:, :, ::2],
    "tokens backwards": lambda x: (
        lambda xp: xp.asarray(np.ascontiguousarray(x[:, :, ::-1]))[:, :, ::-1]
    ),
}


# What matters of a size or a place, for tests with the mark `covering`.
def is_padded(head_dim):
    """Whether channels are added to those of the inputs."""
    return pad_head_dim(head_dim) != head_dim


def is_ragged(tokens):
    """Whether the last block of keys, or half a block, is not whole."""
    return tokens % 64 != 0


def is_long(tokens):
    """Whether there are blocks to go through one after the other."""
    return tokens > 128


def is_aligned(memory):
    """Whether rows begin at whole vectors."""
    return not memory.startswith("odd")


AXES = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


@st.composite
def memories(draw):
    """How an array lies in memory: order of its axes, gaps between rows, where the first begins."""
    return {
        "axes": draw(st.sampled_from(AXES)),
        "before": draw(st.integers(0, 17)),
        "after": draw(st.integers(0, 17)),
        "backwards": draw(st.booleans()),
    }


def placed(x, memory, xp):
    """Return an array [batch, head, token, head_dim] of `xp` with the same values, so placed."""
    order = (*memory["axes"], 3)
    before, after = memory["before"], memory["after"]
    wide = xp.pad(x.transpose(order), [(0, 0)] * 3 + [(before, after)])
    if memory["backwards"]:
        wide = xp.ascontiguousarray(wide[:, ::-1])[:, ::-1]
    return wide[..., before : before + x.shape[3]].transpose(np.argsort(order))
