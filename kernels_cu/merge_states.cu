// Attention of the same queries to several sets of keys becomes that to all of them, in float32.
// A thread has up to S.chunks chunks of one row, and weighs the parts for itself: what it reads of
// their log-sum-exps comes from the L1 cache, for its neighbours read the same.
#include "attn/elements.cuh"
#include "quant/chunk.cuh"
#include "spec.cuh"

// cuattn/specs/merge.py mirrors it; cuattn/compile/params.py reads the arguments after it.
struct MergeSpec {
  Type input;          // elements of the parts' O
  Type out;            // of the merged one: the same, or fp32 if other parts are to come
  bool aligned;        // rows of the parts and of the output begin at multiples of 16 bytes
  int parts;           // of one launch, at most
  int chunks;          // of 16 bytes of a part's row, that a thread has
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct StatePart {
  const void* o;       // [batch, num_heads, seqlen, head_dim], the last axis contiguous
  const f32* lse;      // [batch, num_heads, seqlen], natural log, -inf without keys
  i64 o_stride_batch;  // strides count elements
  i64 o_stride_head;
  i64 o_stride_token;
  i64 lse_stride_batch;
  i64 lse_stride_head;
  i64 lse_stride_token;
};

struct MergeParams {
  StatePart part[16];
  const f32* carried_o;    // [row, head_dim], what launches before have merged; null in the first
  const f32* carried_lse;  // [row]
  void* o;                 // [batch, num_heads, seqlen, head_dim], the last axis contiguous
  f32* lse;                // [row], a row being a batch, head and token
  i64 o_stride_batch;
  i64 o_stride_head;
  i64 o_stride_token;
  i32 num_parts;
  i32 num_heads;
  i32 seqlen;
  i32 head_dim;            // a multiple of 8
  i32 rows;                // of all heads
  i32 tile;                // rows of a CTA
  i32 lanes;               // threads of a row
};

// Which row, in all three axes.
struct StateRow {
  u32 row;
  u32 batch;
  u32 head;
  u32 token;

  __device__ __forceinline__ StateRow(const MergeParams& p, u32 row) : row(row) {
    const u32 seqlen = p.seqlen, heads = p.num_heads;
    const u32 batch_head = row / seqlen;
    token = row % seqlen;
    batch = batch_head / heads;
    head = batch_head % heads;
  }

  __device__ __forceinline__ i64 of_o(const auto& x) const {
    return batch * x.o_stride_batch + head * x.o_stride_head + token * x.o_stride_token;
  }
  __device__ __forceinline__ float lse(const StatePart& x) const {
    return __ldg(x.lse + batch * x.lse_stride_batch + head * x.lse_stride_head +
                 token * x.lse_stride_token);
  }
};

// What the parts of a row count, which is at most kMost, so that sums stay finite where their terms
// are: there are 17 at most, with what is carried.
struct StateWeights {
  static constexpr float kMost = 1.0f / 32;
  float most;       // of all lse; NaN is in the sum
  float sum = 0.0f;

  __device__ __forceinline__ float add(float lse) {
    const float weight = kMost * expf(lse - (most == -kInf ? 0.0f : most));
    sum += weight;
    return weight;
  }
  __device__ __forceinline__ float inverse() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
  __device__ __forceinline__ float lse() const { return most + logf(sum / kMost); }
};

// Caches keep it: somebody reads it next.
template <Type Out, bool Aligned, int Elements>
__device__ __forceinline__ void store_merged(void* o, i64 offset, const float (&x)[Elements]) {
  using Element = typename ElementOf<Out>::type;
  Element* to = static_cast<Element*>(o) + offset;
  StoredPair<Out> pair[Elements / 2];
#pragma unroll
  for (int i = 0; i < Elements / 2; ++i) pair[i] = pack_pair<Out>({x[2 * i], x[2 * i + 1]});
  if constexpr (!Aligned) {
#pragma unroll
    for (int i = 0; i < Elements; ++i) {
      if constexpr (Out == Type::fp32) {
        to[i] = x[i];
      } else {
        to[i] = static_cast<u16>(pair[i / 2] >> 16 * (i % 2));
      }
    }
  } else if constexpr (Out == Type::fp32) {
#pragma unroll
    for (int i = 0; i < Elements; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  } else {
    store_eight<Out>(to, pair);
  }
}

template <MergeSpec S>
__device__ __forceinline__ void merge_states(const MergeParams& p) {
  using In = Chunk<S.input>;
  constexpr int kElements = In::kElements;
  constexpr int kAtATime = 2;  // parts, whose loads are under way together
  static_assert(S.parts == sizeof(MergeParams::part) / sizeof(StatePart));
  const u32 lanes = p.lanes;
  const u32 in_tile = threadIdx.x / lanes;
  const u32 lane = threadIdx.x % lanes;
  const u32 row = blockIdx.x * static_cast<u32>(p.tile) + in_tile;
  if (in_tile >= static_cast<u32>(p.tile) || row >= static_cast<u32>(p.rows)) return;
  const StateRow at(p, row);
  const bool carried = p.carried_o;
  const float carried_lse = carried ? __ldg(p.carried_lse + row) : -kInf;

  int channel[S.chunks];
  float x[S.chunks][kElements] = {};
#pragma unroll
  for (int c = 0; c < S.chunks; ++c) channel[c] = (lane + c * lanes) * kElements;

  In chunk[kAtATime][S.chunks];
  const auto load = [&](int first) {
#pragma unroll
    for (int n = 0; n < kAtATime; ++n) {
      if (first + n >= p.num_parts) break;
      const StatePart& part = p.part[first + n];
      const char* from = static_cast<const char*>(part.o) + at.of_o(part) * bytes_of(S.input);
#pragma unroll
      for (int c = 0; c < S.chunks; ++c) {
        chunk[n][c].template load<S.aligned, true>(from + channel[c] * bytes_of(S.input),
                                                   channel[c] < p.head_dim);
      }
    }
  };
  load(0);  // and not only when it is known which parts have keys
  StateWeights weights{carried_lse};
#pragma unroll 4
  for (int n = 0; n < p.num_parts; ++n) weights.most = fmaxf(weights.most, at.lse(p.part[n]));
  if (carried) {
    const float weight = weights.add(carried_lse);
#pragma unroll
    for (int c = 0; c < S.chunks; ++c) {
      if (channel[c] >= p.head_dim) continue;
      float before[kElements];
      load_floats(before, p.carried_o + static_cast<i64>(row) * p.head_dim + channel[c]);
#pragma unroll
      for (int i = 0; i < kElements; ++i) x[c][i] = weight * before[i];
    }
  }
#pragma unroll 1
  for (int first = 0; first < p.num_parts; first += kAtATime) {
    if (first > 0) load(first);
#pragma unroll
    for (int n = 0; n < kAtATime; ++n) {
      if (first + n >= p.num_parts) break;
      const float lse = at.lse(p.part[first + n]);
      if (lse == -kInf) continue;  // whatever its O holds
      const float weight = weights.add(lse);
#pragma unroll
      for (int c = 0; c < S.chunks; ++c) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float of_word[In::kPerWord];
          chunk[n][c].widen(of_word, w);
#pragma unroll
          for (int i = 0; i < In::kPerWord; ++i) {
            float& sum = x[c][w * In::kPerWord + i];
            sum = __fmaf_rn(weight, of_word[i], sum);
          }
        }
      }
    }
  }
  const float inverse = weights.inverse();
#pragma unroll
  for (int c = 0; c < S.chunks; ++c) {
    if (channel[c] >= p.head_dim) continue;
#pragma unroll
    for (float& each : x[c]) each *= inverse;
    // What others than the caller read is ours, and contiguous.
    constexpr bool kAligned = S.aligned || S.out != S.input;
    store_merged<S.out, kAligned>(p.o, at.of_o(p) + channel[c], x[c]);
  }
  if (lane == 0) p.lse[row] = weights.lse();
}
