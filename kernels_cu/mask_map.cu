// Looks at an attn_mask once: which tiles of 64 rows by 64 keys have keys that are seen, or only
// such, and of booleans the bits. A CTA has the tiles of one word of the map: 64 rows, 2048 keys.
#include "attn/mask_rows.cuh"

// cuattn/specs/mask_map.py mirrors it; cuattn/compile/params.py reads the arguments after it.
struct MaskMapSpec {
  MaskKind input;      // bits: booleans, one a byte
  bool last;           // its columns are of each sequence's last keys: MaskMapParams::lengths
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct MaskMapParams {
  const void* mask;    // [batch, heads, rows, keys], of which each but the last may be 1
  u32* bits;           // [batch, heads, rows, bit_words]: bit j of word i is key 32 i + j
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
  i32 columns;         // of the mask, if S.last; else keys
  const i32* lengths;  // [batch], keys of each sequence, of which the last one has the last column;
                       // those before the first column are seen, and add nothing
};

constexpr int kTile = 64;
constexpr int kWordTiles = 32;

// What a lane has of a row: 16 bytes, of a bit for each of their keys.
template <MaskKind Kind, bool Last>
struct LaneKeys {
  static constexpr bool kBits = Kind == MaskKind::bits;
  static constexpr Type kType = type_of(Kind);
  static constexpr int kBytes = kBits ? 1 : bytes_of(kType);  // of a key
  static constexpr int kCount = 16 / kBytes;
  u32 words[4];

  // All keys from an element on, at a multiple of 16 bytes, or zeros.
  __device__ __forceinline__ void load(const void* mask, i64 at, bool exist) {
    uint4 x{0, 0, 0, 0};
    if (exist) {
      x = __ldg(reinterpret_cast<const uint4*>(static_cast<const u8*>(mask) + at * kBytes));
    }
    words[0] = x.x;
    words[1] = x.y;
    words[2] = x.z;
    words[3] = x.w;
  }

  // Those from `begin` to `end` of them, wherever they are. Others, if `Last`, are seen.
  __device__ __forceinline__ void gather(const void* mask, i64 at, i64 stride, int begin, int end) {
#pragma unroll
    for (u32& word : words) word = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i >= begin && i < end) {
        words[i * kBytes / 4] |= element(mask, at + i * stride) << i * kBytes % 4 * 8;
      } else if (Last && kBits) {
        words[i / 4] |= 1u << i % 4 * 8;
      }
    }
  }

  // Which keys are seen, and which add nothing to a logit.
  __device__ __forceinline__ void look(u32& seen, u32& plain) const {
    seen = plain = 0;
    if constexpr (kBits) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The highest bit of each byte that is not 0, then these four side by side.
        const u32 x = words[i];
        const u32 highest = (x | ((x & 0x7f7f7f7fu) + 0x7f7f7f7fu)) & 0x80808080u;
        seen |= ((highest >> 7) * 0x10204080u >> 28) << 4 * i;
      }
      plain = seen;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float x = value(i);
        seen |= static_cast<u32>(!(x <= kLeast<kType>)) << i;  // NaN is no mask: it acts
        plain |= static_cast<u32>(x == 0.0f) << i;
      }
    }
  }

 private:
  __device__ __forceinline__ static u32 element(const void* mask, i64 at) {
    if constexpr (kBytes == 4) return __ldg(static_cast<const u32*>(mask) + at);
    if constexpr (kBytes == 2) return __ldg(static_cast<const u16*>(mask) + at);
    return __ldg(static_cast<const u8*>(mask) + at);
  }

  __device__ __forceinline__ float value(int i) const {
    if constexpr (kBytes == 4) {
      return __uint_as_float(words[i]);
    } else {
      float x[2];
      const u32 pair = words[i / 2];
      kType == Type::fp16 ? ptx::widen_f16x2(x, pair) : ptx::widen_bf16x2(x, pair);
      return x[i % 2];
    }
  }
};

// A lane's keys of some rows, of which it writes the bits: which are seen by any, and which add
// nothing to a logit of any. The mask has those from `first` to `count`.
template <MaskMapSpec S, bool Vectors>
__device__ __forceinline__ void look_at_rows(const MaskMapParams& p, i64 mask_row, i64 bit_row,
                                             int begin, int end, int key, int first, int count,
                                             u32& some, u32& all) {
  using Keys = LaneKeys<S.input, S.last>;
  constexpr int kRows = Vectors ? 4 : 1;  // whose loads are under way together
  for (int i = begin; i < end; i += kRows) {
    Keys x[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {  // the last row again where there are no more
      const i64 at = mask_row + min_of(i + j, end - 1) * p.stride_row + key * p.stride_key;
      if constexpr (Vectors) {
        x[j].load(p.mask, at, count != 0);
      } else {
        x[j].gather(p.mask, at, p.stride_key, first, count);
      }
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      u32 seen, plain;
      x[j].look(seen, plain);
      some |= seen;
      all &= plain;
      if constexpr (Keys::kBits) {
        const u32 word = seen | __shfl_down_sync(0xffffffffu, seen, 1) << Keys::kCount;
        if (threadIdx.x % 2 == 0 && key / 32 < p.bit_words) {
          p.bits[(bit_row + min_of(i + j, end - 1)) * p.bit_words + key / 32] = word;
        }
      }
    }
  }
}

template <MaskMapSpec S>
__device__ __forceinline__ void mask_map(const MaskMapParams& p) {
  using Keys = LaneKeys<S.input, S.last>;
  constexpr int kWarps = S.num_threads / kWarpSize;
  constexpr int kChunk = kWarpSize * Keys::kCount;  // keys of a warp
  __shared__ u32 found[2];  // tiles with keys that are seen, and with such that are not, or add
  if (threadIdx.x < 2) found[threadIdx.x] = 0;
  __syncthreads();
  const int map_word = blockIdx.x % p.map_words;
  const int tile = blockIdx.x / p.map_words % p.tiles;
  const int head = blockIdx.x / p.map_words / p.tiles % p.heads;
  const int batch = blockIdx.x / p.map_words / p.tiles / p.heads;
  const int first_key = map_word * kWordTiles * kTile;
  const int keys = min_of(kWordTiles * kTile, p.keys - first_key);
  const int rows = min_of(kTile, p.rows - tile * kTile);
  const i64 first_row = static_cast<i64>(tile) * kTile;
  const i64 bit_row = (static_cast<i64>(batch) * p.heads + head) * p.rows + first_row;
  i64 mask_row = batch * p.stride_batch + head * p.stride_head + first_row * p.stride_row;
  const i64 bytes = mask_row | p.stride_row | keys;  // if multiples of 16 bytes, then all are
  const bool vectors = p.stride_key == 1 && bytes % Keys::kCount == 0 &&
                       reinterpret_cast<u64>(p.mask) % 16 == 0;
  // Keys that the mask has columns for. Rows of last keys begin anywhere, so their columns are
  // gathered.
  int first_column = 0;
  int end_column = p.keys;
  if constexpr (S.last) {
    end_column = min_of(__ldg(p.lengths + batch), p.keys);
    first_column = end_column - p.columns;
    mask_row -= first_column * p.stride_key;
  }
  // Warps share the rows where there are fewer chunks of keys than warps.
  const int chunks = ceil_div(keys, kChunk);
  const int parts = max_of(1, kWarps / chunks);
  const int part_rows = ceil_div(rows, parts);
  for (int item = threadIdx.x / kWarpSize; item < chunks * parts; item += kWarps) {
    const int offset = item % chunks * kChunk + threadIdx.x % kWarpSize * Keys::kCount;
    const int count = max_of(0, min_of(Keys::kCount, keys - offset));
    const int begin = item / chunks * part_rows;
    const int end = min_of(begin + part_rows, rows);
    const u32 existing = (1u << count) - 1;
    u32 some = 0;
    u32 all = existing;
    const int key = first_key + offset;
    if (!S.last && vectors) {
      look_at_rows<S, true>(p, mask_row, bit_row, begin, end, key, 0, count, some, all);
    } else {
      const int first = S.last ? first_column - key : 0;
      const int to = S.last ? min_of(count, end_column - key) : count;
      look_at_rows<S, false>(p, mask_row, bit_row, begin, end, key, first, to, some, all);
    }
    const u32 column = 1u << offset / kTile;
    const u32 seen = __reduce_or_sync(0xffffffffu, (some & existing) != 0 ? column : 0);
    const u32 broken = __reduce_or_sync(0xffffffffu, all != existing ? column : 0);
    if (threadIdx.x % kWarpSize == 0) {
      atomicOr(&found[0], seen);
      atomicOr(&found[1], broken);
    }
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  const u32 columns = 0xffffffffu >> (kWordTiles - ceil_div(keys, kTile));
  const u32 word = threadIdx.x == 0 ? found[0] : ~found[1] & columns;
  const i64 of_map = (static_cast<i64>(batch) * p.heads + head) * p.tiles + tile;
  p.map[(of_map * 2 + threadIdx.x) * p.map_words + map_word] = word;
}
