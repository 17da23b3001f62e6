// Which units of a sequence have the lower halves of nested codes, and where: the first units and
// the newest ones. A new unit takes the place of the one that is recent_units older.
#pragma once
#include "kv/unit.cuh"

// The first of the newest units that have them, after an append to a sequence.
__device__ __forceinline__ int coarse_after(const KvStore& store, int coarse, int length,
                                            int after) {
  const int kept = min_of(coarse, ceil_div(length, kUnitTokens));  // units behind it are new
  const int newest = ceil_div(after, kUnitTokens) - store.recent_units;
  return max_of(max_of(kept, newest), store.first_units);
}

__device__ __forceinline__ bool is_fine(const KvStore& store, int coarse, int unit) {
  return unit < store.first_units || unit >= coarse;
}

// Where the lower halves of a unit begin that has them. `head` counts through the batch.
__device__ __forceinline__ u8* fine_address(const KvStore& store, int head, int unit,
                                            int unit_bytes) {
  const int first = store.first_units;
  const int place = unit < first ? unit : first + remainder_of(unit - first, store.recent_units);
  return store.fine +
         (static_cast<i64>(head) * (first + store.recent_units) + place) * unit_bytes;
}

// A bit for each of eight units from `unit` on: whether it has lower halves.
__device__ __forceinline__ u32 fine_bits(const KvStore& store, int coarse, int unit) {
  const int below = min_of(max_of(store.first_units - unit, 0), 8);
  const int from = min_of(max_of(coarse - unit, 0), 8);
  return ((1u << below) - 1 | 0xffu << from) & 0xffu;
}
