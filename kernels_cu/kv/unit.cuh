// A unit of the KV cache: 16 tokens of one head, with their scales. cuattn/kv_format.py has the
// same sizes, cuattn/kv/units.py the same order.
//
// All codes lie as matrices of 8 rows of 16 bytes, as ldmatrix takes them: 128 bytes, in which lane
// 4 g + t of a product's B operand finds its word t of row g. Copies are the unit as it is.
//   K, 8 bits: [head_dim / 16][token][16 channels]
//   K, 4 bits: [head_dim / 32][token][16 bytes]: channel i in the lower half of byte i, 16 + i in
//              the upper one
//   V, 8 bits: [channel][slot]
//   V, 4 bits: [head_dim / 16][8 rows][slot]: channel r in the lower half of row r, 8 + r in the
//              upper one
//   scales and zero points, float32: [group][slot]
// Slots are those of layout.cuh. Codes of 4 bits are in two's complement.
//
// Nested codes have 8 bits: K and V of a unit are their upper halves, and pairs of bfloat16 numbers
// are in the place of scales, a scale in the lower half of a word and a zero point in the upper
// one, of codes without lower halves. These, with pairs of the whole codes, are units of the same
// form in KvStore::fine, of those units that have them.
#pragma once
#include "kv/kv_params.cuh"
#include "kv/kv_spec.cuh"
#include "layout.cuh"

constexpr int kUnitTokens = 16;
constexpr int kMatrixBytes = 128;

// Tokens at the beginning of a sequence whose keys no offset is taken from, if it begins with few;
// whole units. reference/kv_cache.py has the same.
constexpr int kFirstTokens = 128;

// S is the spec of any kernel of the cache but OffsetSpec.
template <auto S>
struct Unit {
  static constexpr int kKGroups = S.group && S.k_bits == 4 ? S.head_dim / S.group : 1;
  static constexpr int kVGroups = !S.nested && S.group && S.v_bits == 4 ? S.head_dim / S.group : 1;
  static constexpr bool kHasVZero = S.v_zero || S.nested;
  static constexpr int kScaleBytes = 4 * kUnitTokens;
  // Where they begin, in bytes.
  static constexpr int kK = 0;
  static constexpr int kV = kUnitTokens * S.head_dim * S.k_bits / 8;
  static constexpr int kKScale = kV + kUnitTokens * S.head_dim * S.v_bits / 8;
  static constexpr int kVScale = kKScale + kKGroups * kScaleBytes;
  static constexpr int kVZero = kVScale + kVGroups * kScaleBytes;
  // And end; the next unit begins at a line of memory.
  static constexpr int kUsed = kVZero + (S.v_zero ? kVGroups * kScaleBytes : 0);
  static constexpr int kBytes = (kUsed + 127) / 128 * 128;
};

// First tokens of a sequence whose keys have no offset.
__device__ __forceinline__ int bare_tokens(const KvStore& store, int sequence) {
  return store.bare ? store.bare[sequence] : 0;
}

// Where a sequence's page is in KvStore::pages, which may have more than 2^31 entries.
__host__ __device__ constexpr i64 page_entry(int sequence, int pages_per_sequence, int page) {
  return static_cast<i64>(sequence) * pages_per_sequence + page;
}

// The page of a unit of a sequence.
__device__ __forceinline__ int page_of(const KvStore& store, int sequence, int unit) {
  if (store.pages == nullptr) return sequence;
  const int page_bits = 31 - __clz(store.page_units);
  return store.pages[page_entry(sequence, store.pages_per_sequence, unit >> page_bits)];
}

// Where a unit of a head begins in its page.
__device__ __forceinline__ u8* unit_address(const KvStore& store, int page, int kv_head, int unit,
                                            int unit_bytes) {
  if (store.pages) unit &= store.page_units - 1;
  return store.units + page * store.page_stride + kv_head * store.head_stride +
         static_cast<i64>(unit) * unit_bytes;
}
