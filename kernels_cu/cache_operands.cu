// K and V of a KV cache as attention takes them: codes of sorted keys (layout.cuh), which another
// quantizer makes of arrays. A CTA has a block of 128 tokens of a head: its units come to shared
// memory as they are, once, and codes go out, once.
//   note_sizes           largest magnitudes of tokens, from their scales
//   turn_values          V from channels to tokens
//   sort_tokens, ...     as quant/quantize_sorted.cuh: the order, scales, codes
#include "kv/cached_values.cuh"
#include "kv/token_sizes.cuh"
#include "quant/sorted_codes.cuh"
#include "quant/sorted_scales.cuh"

template <OperandsSpec S>
struct alignas(128) OperandsStorage {
  // Codes of V take the place of what has been read.
  union {
    CachedBlock<S> block;
    TransposedTile<kSortedCodes<S>> codes;
  };
  SortedTokens sorted;
  f32 offset[S.head_dim];
};

// K's codes, once all tokens have their places.
template <OperandsSpec S, bool Bare>
__device__ __forceinline__ void store_keys(const QuantizeOperand& x, const TileSource& tile,
                                           const OperandsStorage<S>& storage, u32 fine, int bare,
                                           i64 place) {
  KeyRows<S> rows(x, tile);
  rows.tile.read(KeyCodes<S>{storage.block, fine}, rows.order);
  const KeyValues<S, Bare> values(rows, storage.block, fine, storage.offset, bare);
  store_sorted_keys<kSortedCodes<S>>(x, rows, values, storage.sorted, place);
}

template <OperandsSpec S>
__device__ __forceinline__ void store_operands(const OperandsParams& p) {
  constexpr QuantizeSpec Q = kSortedCodes<S>;
  using Storage = OperandsStorage<S>;
  static_assert(sizeof(Storage) == S.smem_bytes,
                "cuattn/kv/operands_spec.py and OperandsStorage disagree");
  extern __shared__ __align__(128) u8 smem[];
  Storage& storage = *reinterpret_cast<Storage*>(smem);

  if (p.bounds && blockIdx.x == 0) {
    for (int i = threadIdx.x; i <= p.store.batch; i += S.num_threads) {
      p.bounds[i] = i * p.bound_step;
    }
  }
  const int head = static_cast<u32>(blockIdx.x) / static_cast<u32>(p.blocks);
  const int block = static_cast<u32>(blockIdx.x) % static_cast<u32>(p.blocks);
  const int sequence = static_cast<u32>(head) / static_cast<u32>(p.store.num_kv_heads);
  const int kv_head = static_cast<u32>(head) % static_cast<u32>(p.store.num_kv_heads);
  const int length = __ldg(p.store.lengths + sequence);
  const int first = block * kSortedBlock;
  const int count = length - first;
  if (count <= 0 || first + kSortedBlock <= length - p.window) return;

  u32 fine = 0;
  if constexpr (S.nested) {
    fine = fine_bits(p.store, __ldg(p.store.coarse + sequence), first / kUnitTokens);
  }
  storage.block.fetch(p.store, sequence, kv_head, first / kUnitTokens, count, fine);
  // First keys of the block that have no offset.
  const int bare = p.store.k_offset ? bare_tokens(p.store, sequence) - first : 0;
  if (bare > 0 && threadIdx.x < kWarpSize) {
    turn_offset<S>(storage.offset, p.store.k_offset + static_cast<i64>(head) * S.channels);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();

  // All blocks are counted as if they were those of one head.
  const i64 place = sequence * p.places_of_sequence + kv_head * p.places_of_head + block;
  QuantizeParams made = {};
  made.k.heads = made.v.heads = 1;
  made.k.out = p.k_codes;
  made.k.scale = p.k_scale;
  made.v.out = p.v_codes;
  made.v.scale = p.v_scale;
  const TileSource tile = {nullptr, 0, 0, static_cast<int>(place) * kSortedBlock, count};
  SortedTokens& sorted = storage.sorted;
  note_sizes<S>(sorted, storage.block, fine, count);
  turn_values<S>(storage.block, fine);
  if (bare > 0) {
    __syncthreads();  // K's magnitudes are others
    note_bare_keys<S>(sorted, made.k, tile, storage.block, fine, storage.offset, bare);
  }
  __syncthreads();
  sort_tokens(sorted);
  __syncthreads();
  if (threadIdx.x < kSortedBlock / 16) {
    reinterpret_cast<uint4*>(p.order + place * kSortedBlock)[threadIdx.x] =
        reinterpret_cast<const uint4*>(sorted.token)[threadIdx.x];
  }
  scale_places<Q>(made, sorted, count);
  __syncthreads();
  if (bare > 0) {
    store_keys<S, true>(made.k, tile, storage, fine, bare, place);
  } else {
    store_keys<S, false>(made.k, tile, storage, fine, bare, place);
  }
  store_place_scales<Q>(made, sorted, place);
  store_sorted_values<Q>(CachedValues<S>{made.v, storage.block, fine, tile}, storage);
}
