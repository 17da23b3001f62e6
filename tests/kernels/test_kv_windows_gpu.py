"""What decoding visits: the units that some row of a sequence sees, each once."""

from functools import cache

import numpy as np
import pytest

from cuattn.arrays.device import current_device, target
from cuattn.kv.scores import PLAIN, Features
from cuattn.kv.shares import share_values
from cuattn.kv.spec import decode_spec
from cuattn.kv_format import KVFormat
from cuattn.specs.attention import Type

# One warp of each CTA counts the units that a kernel's copying warp would bring.
KERNEL = """
#include "kv/unit_copies.cuh"

extern "C" __global__ void visit(i32* lengths, int batch, int heads, int seqlen_q, int window_left,
                                 int most_units, int recent_units, int parts, int ctas_of_head,
                                 u32 multiplier, u32 shift, u32 of_head_multiplier,
                                 u32 of_head_shift, u32* visits) {
  constexpr auto S = SPEC;
  DecodeParams p = {};
  p.store.lengths = lengths;
  p.store.batch = batch;
  p.store.num_kv_heads = heads;
  p.row_tiles = 1;
  p.seqlen_q = seqlen_q;
  p.window_left = window_left;
  p.store.recent_units = recent_units;
  p.parts = parts;
  p.ctas_of_head = ctas_of_head;
  p.by_ctas = {multiplier, shift};
  p.by_ctas_of_head = {of_head_multiplier, of_head_shift};
  const Partition<S> partition(p);
  if (!partition.has_share(blockIdx.x)) return;
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


OWN = Features(batch_invariant=True)
FORMATS = {
    "plain": KVFormat(64),
    "nested": KVFormat(64, 4, 4, rotate=True, nested=True),
}
# Units that nested codes have lower halves of.
RECENT = 17


@cache
def compiled(arch, features, name="plain"):
    from cuattn.compile.nvrtc import compile_source

    spec = decode_spec(FORMATS[name], Type.fp16, 1, target(arch), features)
    return compile_source(KERNEL.replace("SPEC", spec.cxx()), arch)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "features", [PLAIN, Features(window=True), OWN], ids=["plain", "window", "own"]
)
def test_kernel_compiles(features, name):
    pytest.importorskip("cupy")
    assert compiled("90a", features, name).image


def visits(cupy, lengths, heads, queries, left, ctas, name="plain", parts=0, recent=RECENT):
    """Return how often each unit is visited, [sequence, head, unit]."""
    features = Features(window=left is not None, batch_invariant=parts > 0)
    module = cupy.cuda.function.Module()
    module.load(compiled(current_device().arch, features, name).image)
    units = max(-(-max(lengths) // 16), 1)
    found = cupy.zeros((len(lengths), heads, units), cupy.uint32)
    shares = share_values(
        heads_per_kv=1, row_tiles=1, num_kv_heads=heads, batch=len(lengths), ctas=ctas
    )
    sizes = (len(lengths), heads, queries, left or 0, units, recent, parts, shares["ctas_of_head"])
    divisors = (*shares["by_ctas"].values(), *shares["by_ctas_of_head"].values())
    numbers = (*map(np.int32, sizes), *map(np.uint32, divisors))
    arguments = (cupy.array(lengths, cupy.int32), *numbers, found)
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


# Of 40 sequences each head has two CTAs of 240 to itself, with an empty place ahead of its blocks.
@pytest.mark.gpu
@pytest.mark.parametrize("recent", [0, RECENT])
@pytest.mark.parametrize("ctas", [1, 7, 132, 240, 264, 1000])
@pytest.mark.parametrize("lengths", [*LENGTHS, [131072], [8192] * 16, [1024] * 40], ids=str)
def test_shares_of_nested_codes(cupy, lengths, ctas, recent):
    found = visits(cupy, lengths, 3, 1, None, ctas, "nested", recent=recent)
    np.testing.assert_array_equal(found, wanted(lengths, 3, 1, None))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("left", [None, 1000])
@pytest.mark.parametrize("parts", [1, 5, 33])
@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_parts_of_their_own(cupy, lengths, parts, left, name):
    found = visits(cupy, lengths, 3, 1, left, 3 * len(lengths) * parts, name, parts)
    np.testing.assert_array_equal(found, wanted(lengths, 3, 1, left))


@pytest.mark.gpu
def test_many_sequences(cupy, rng):
    lengths = rng.integers(0, 3000, 500).tolist()
    for left in (None, 100, 1000):
        found = visits(cupy, lengths, 4, 2, left, 264)
        np.testing.assert_array_equal(found, wanted(lengths, 4, 2, left))
