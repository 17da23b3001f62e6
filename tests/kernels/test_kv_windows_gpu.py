"""What decoding with a window visits: the units that some row of a sequence sees, each once."""

from functools import cache

import numpy as np
import pytest

from cuattn.arrays.device import current_device, target
from cuattn.kv.scores import PLAIN, Features
from cuattn.kv.spec import decode_spec
from cuattn.kv_format import KVFormat
from cuattn.specs.attention import Type

# One warp of each CTA counts the units that a kernel's copying warp would bring.
KERNEL = """
#include "kv/unit_copies.cuh"

extern "C" __global__ void visit(i32* lengths, int batch, int heads, int seqlen_q, int window_left,
                                 int most_units, u32* visits) {
  constexpr auto S = SPEC;
  DecodeParams p = {};
  p.store.lengths = lengths;
  p.store.batch = batch;
  p.store.num_kv_heads = heads;
  p.row_tiles = 1;
  p.seqlen_q = seqlen_q;
  p.window_left = window_left;
  const Partition<S> partition(p);
  if (partition.begin(blockIdx.x) == partition.begin(blockIdx.x + 1)) return;
  const int lane = threadIdx.x;
  for_heads(partition, [&](const HeadShare& head) {
    u32* of_head = visits + (head.at.sequence * heads + head.at.head) * most_units;
    for (int block = head.at.block; block < head.last; ++block) {
      const BlockUnits<S> units(partition, head.at.length, block);
      if (lane >= units.begin && lane < units.end) atomicAdd(of_head + units.first + lane, 1u);
    }
  });
}
"""


@cache
def compiled(arch, features):
    from cuattn.compile.nvrtc import compile_source

    spec = decode_spec(KVFormat(64), Type.fp16, 1, target(arch), features)
    return compile_source(KERNEL.replace("SPEC", spec.cxx()), arch)


@pytest.mark.parametrize("features", [PLAIN, Features(window=True)], ids=["plain", "window"])
def test_kernel_compiles(features):
    pytest.importorskip("cupy")
    assert compiled("90a", features).image


def visits(cupy, lengths, heads, queries, left, ctas):
    """Return how often each unit is visited, [sequence, head, unit]."""
    features = PLAIN if left is None else Features(window=True)
    module = cupy.cuda.function.Module()
    module.load(compiled(current_device().arch, features).image)
    units = max(-(-max(lengths) // 16), 1)
    found = cupy.zeros((len(lengths), heads, units), cupy.uint32)
    sizes = (len(lengths), heads, queries, left or 0, units)
    arguments = (cupy.array(lengths, cupy.int32), *map(np.int32, sizes), found)
    module.get_function("visit")((ctas,), (32,), arguments)
    return found.get()


def wanted(lengths, heads, queries, left):
    found = np.zeros((len(lengths), heads, max(-(-max(lengths) // 16), 1)), np.uint32)
    for b, length in enumerate(lengths):
        first = 0 if left is None else max(0, length - queries - left)
        found[b, :, first // 16 : -(-length // 16)] = 1
    return found


LENGTHS = ([1], [4096], [0, 5, 1000, 129, 0], [128, 256, 512, 1024], [300] * 40 + [0] * 30 + [9000])


@pytest.mark.gpu
@pytest.mark.parametrize("ctas", [1, 7, 132, 1000])
@pytest.mark.parametrize("left", [None, 0, 15, 16, 127, 128, 1023, 2**30])
@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_what_is_seen_is_visited_once_and_nothing_else(cupy, lengths, left, ctas):
    for queries in (1, 5):
        found = visits(cupy, lengths, 3, queries, left, ctas)
        np.testing.assert_array_equal(found, wanted(lengths, 3, queries, left))


@pytest.mark.gpu
def test_many_sequences(cupy, rng):
    lengths = rng.integers(0, 3000, 500).tolist()
    for left in (None, 100, 1000):
        found = visits(cupy, lengths, 4, 2, left, 264)
        np.testing.assert_array_equal(found, wanted(lengths, 4, 2, left))
