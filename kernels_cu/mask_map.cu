// Looks at an attn_mask once: which tiles of 64 rows by 64 keys have keys that are seen, or only
// such, and of booleans the bits. A CTA has the tiles of one word of the map: 64 rows, 2048 keys.
#include "attn/mask_rows.cuh"

// cuattn/specs/mask_map.py mirrors it; cuattn/compile/params.py reads the arguments after it.
struct MaskMapSpec {
  MaskKind input;      // bits: booleans, one a byte
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct MaskMapParams {
  const void* mask;    // [batch, heads, rows, keys], of which each but the last may be 1
  u32* bits;           // [batch, heads, rows, bit_words], of booleans: bit j of word i is key 32i + j
  u32* map;            // [batch, heads, ceil(rows / 64), 2, map_words]: AttentionParams::mask_map
  i64 stride_batch;    // of the mask, in elements
  i64 stride_head;
  i64 stride_row;
  i64 stride_key;
  i32 heads;
  i32 rows;
  i32 keys;
  i32 bit_words;
  i32 map_words;
  i32 tiles;           // of 64 rows, of a head
};

constexpr int kTile = 64;
constexpr int kWordTiles = 32;

template <MaskMapSpec S>
__device__ __forceinline__ void mask_map(const MaskMapParams& p) {
  constexpr bool kBits = S.input == MaskKind::bits;
  constexpr int kWarps = S.num_threads / kWarpSize;
  __shared__ u32 found[2];  // the words of the map
  if (threadIdx.x < 2) found[threadIdx.x] = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarpSize;
  const int map_word = blockIdx.x % p.map_words;
  const int tile = blockIdx.x / p.map_words % p.tiles;
  const int head = blockIdx.x / p.map_words / p.tiles % p.heads;
  const int batch = blockIdx.x / p.map_words / p.tiles / p.heads;
  const i64 first_row = static_cast<i64>(batch) * p.heads * p.rows +
                        static_cast<i64>(head) * p.rows;  // of the bits
  const i64 of_head = batch * p.stride_batch + head * p.stride_head;
  const int rows = min_of(kTile, p.rows - tile * kTile);
  for (int column = threadIdx.x / kWarpSize; column < kWordTiles; column += kWarps) {
    const int key = (map_word * kWordTiles + column) * kTile;
    if (key >= p.keys) break;
    bool some = false;
    bool whole = true;
    for (int i = 0; i < rows; ++i) {
      const i64 row = tile * kTile + i;
      u32 word[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = key + 32 * half + lane;
        const i64 at = of_head + row * p.stride_row + j * p.stride_key;
        bool sees = false;
        bool adds_nothing = true;
        if (j < p.keys) {
          if constexpr (kBits) {
            sees = adds_nothing = __ldg(static_cast<const u8*>(p.mask) + at) != 0;
          } else {
            constexpr Type kType = type_of(S.input);
            const float x = widened<kType>(p.mask, at);
            sees = !(x <= kLeast<kType>);  // NaN is no mask: it acts
            adds_nothing = x == 0.0f;
          }
        }
        word[half] = __ballot_sync(0xffffffffu, sees);
        some = some || word[half] != 0;
        whole = whole && __all_sync(0xffffffffu, adds_nothing);
      }
      if (kBits && lane < 2 && key / 32 + lane < p.bit_words) {
        p.bits[(first_row + row) * p.bit_words + key / 32 + lane] = lane == 0 ? word[0] : word[1];
      }
    }
    if (lane == 0 && some) atomicOr(&found[0], 1u << column);
    if (lane == 0 && whole) atomicOr(&found[1], 1u << column);
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  const i64 of_map = (static_cast<i64>(batch) * p.heads + head) * p.tiles + tile;
  p.map[(of_map * 2 + threadIdx.x) * p.map_words + map_word] = found[threadIdx.x];
}
