// Attention with warpgroup-level matrix products, for sm_90a.
//
// Some warpgroups attend, each with 64 query rows of one head; one thread of another warpgroup
// streams that head's keys and values past all of them. Per block of keys a warpgroup has:
//   start_scores  S = Q K^T on the tensor cores
//   GroupSoftmax  S -> P, with the row maximum of the block or of all blocks so far
//   start_values  P V on the tensor cores, in int32 or float32
//   flush         O += P V, if O is not the accumulator itself
#include "attn/output.cuh"
#include "hopper/group_softmax.cuh"
#include "hopper/group_work.cuh"
#include "hopper/producer.cuh"
#include "hopper/products.cuh"
#include "hopper/tile_storage.cuh"
#include "hopper/turns.cuh"
#include "ptx/registers.cuh"

template <WgmmaSpec S>
__device__ __forceinline__ void attend(const WgmmaParams& p, TileStorage<S>& storage) {
  using H = TileShape<S>;
  const AttentionParams& a = p.attention;
  const int lane = threadIdx.x % kWarpSize;
  // Broadcast, so that the compiler knows it to be the same for all lanes.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const int group = warp / 4;
  const u32 k_full = ptx::smem_address(storage.k_full);
  const u32 k_empty = ptx::smem_address(storage.k_empty);
  const u32 v_full = ptx::smem_address(storage.v_full);
  const u32 v_empty = ptx::smem_address(storage.v_empty);
  const u32 q_full = ptx::smem_address(storage.q_full);
  const u32 q_empty = ptx::smem_address(storage.q_empty);
  const u64 q_tile = k_major<typename H::QTile>(ptx::smem_address(storage.q[0][group]));
  const u64 k_tile = k_major<typename H::KTile>(ptx::smem_address(storage.k));
  const u32 v_address = ptx::smem_address(storage.v);
  const u64 v_tile = H::kScaledValues ? k_major<typename H::VTile>(v_address)
                                      : mn_major<typename H::VTile>(v_address);
  auto release = [&](u32 barriers, int buffer) {
    if (lane == 0) ptx::mbarrier_arrive(barriers + 8 * buffer);
  };

  Turn<S.stages> k_turn;
  Turn<S.stages> v_turn;
  Turn<S.q_buffers> q_turn;
  Items items;
  int index;
  while (items.next(p, index)) {
    const Item<S> item(p, index);
    const int first_row = item.first_row + group * kGroupRows;
    const int warp_row = first_row + warp % 4 * 16;
    const int last_row = min_of(first_row + kGroupRows, a.seqlen_q) - 1;
    // Blocks that some row of this warpgroup sees, the first `unmasked` whole by every row.
    const int end = last_row < first_row
                        ? 0
                        : ceil_div(item.seen_by(a, last_row), static_cast<i32>(S.block_kv));
    const int unmasked = item.seen_by(a, first_row) / S.block_kv;
    const i64 batch_kv_head =
        static_cast<i64>(item.batch) * (a.num_q_heads / a.heads_per_kv) + item.kv_head;
    const f32* k_scales =
        a.k_scale + batch_kv_head * ceil_div(a.seqlen_kv, static_cast<i32>(S.block_kv));

    Accumulator<S.integer_o> o[H::kOutput] = {};
    GroupSoftmax<S> softmax;
    softmax.start(a, static_cast<i64>(item.batch) * a.num_q_heads + item.head, warp_row, lane);
    float k_scale = 1.0f;

    typename GroupSoftmax<S>::Scores s;
    u32 probabilities[H::kProbabilities];
    Accumulator<H::kIntegerValues> block_sum[H::kSlice];
    auto sums = [&](auto flush) -> auto& {
      if constexpr (decltype(flush)::value) return block_sum; else return o;
    };
    auto rescale = [&](int half, float shift, float shrink) {
#pragma unroll
      for (int i = 0; i < H::kOutput / 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          auto& x = o[4 * i + 2 * half + e];
          if constexpr (S.integer_o) {
            x >>= min_of(__float2int_rn(-shift), 31);
          } else {
            x *= shrink;
          }
        }
      }
    };
    auto scores = [&](int block) {
      // While the products are under way.
      if constexpr (H::kScaledScores && !H::kTokenK) k_scale = __ldg(k_scales + block);
      k_turn.wait_full(k_full);
      start_scores<S>(s, ptx::advance(q_tile, q_turn.buffer * S.groups * H::QTile::bytes),
                      ptx::advance(k_tile, k_turn.buffer * H::KTile::bytes));
    };
    auto probabilities_of = [&](int block, auto masked) {
      constexpr bool kMasked = decltype(masked)::value;
      const TokenScales<S>& keys = storage.scales[k_turn.buffer];
      if constexpr (!H::kTokenK) release(k_empty, k_turn.buffer);
      softmax.template begin<kMasked>(s, keys, k_scale, Mask<S>(a, warp_row, block, lane), lane,
                                      rescale);
      if constexpr (S.interleaved) {
        v_turn.wait_full(v_full);
        const u64 v = ptx::advance(v_tile, v_turn.buffer * H::VTile::bytes);
        auto& to = sums(Bool<H::kFlush>{});
        ptx::hold(to);
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, i, lane);
          ptx::hold(probabilities);
          ptx::wgmma_fence();
          if (i == 0) {
            start_value_step<S, !H::kFlush>(to, probabilities, v, 0, i);
          } else {
            start_value_step<S, true>(to, probabilities, v, 0, i);
          }
        }
        ptx::wgmma_commit();
      } else {
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, i, lane);
        }
      }
      softmax.end();
      if constexpr (H::kTokenK) ptx::mbarrier_arrive(k_empty + 8 * k_turn.buffer);
      k_turn.next();
    };
    // P V of the block before, and scores of the next unless this is `Last`.
    auto products = [&](int next, auto last) {
      constexpr bool kLast = decltype(last)::value;
      if constexpr (S.interleaved) {
        if constexpr (!kLast) scores(next);
        ptx::wgmma_wait<!kLast>();
        auto& from = sums(Bool<H::kFlush>{});
        ptx::hold(from);
        ptx::hold(probabilities);
        release(v_empty, v_turn.buffer);
        v_turn.next();
        if constexpr (H::kFlush) {
#pragma unroll
          for (int i = 0; i < H::kOutput; ++i) {
            o[i] = __fmaf_rn(static_cast<float>(from[i]), softmax.weight[i % 4 / 2], o[i]);
          }
        }
        if constexpr (!kLast) {
          ptx::wgmma_wait<0>();
          ptx::hold(s);
        }
        return;
      }
      v_turn.wait_full(v_full);
      const u64 v = ptx::advance(v_tile, v_turn.buffer * H::VTile::bytes);
      if constexpr (H::kFlush) {
        constexpr int kBuffers = S.slices_in_flight;
        // The scores' registers serve again, if nothing else is in them.
        constexpr bool kAgain = !S.ahead && H::kIntegerScores == H::kIntegerValues &&
                                kBuffers * H::kSlice <= H::kScores;
        Accumulator<H::kIntegerValues> own[kAgain ? 1 : kBuffers][H::kSlice];
        auto sum = [&](int slice) -> auto& {
          using Slice = Accumulator<H::kIntegerValues>(&)[H::kSlice];
          if constexpr (kAgain) {
            return reinterpret_cast<Slice>(s[slice % kBuffers * H::kSlice]);
          } else {
            return own[slice % kBuffers];
          }
        };
        auto flush = [&](int slice) {
          auto& from = sum(slice);
          ptx::hold(from);
#pragma unroll
          for (int i = 0; i < H::kSlice; ++i) {
            auto& x = o[slice * H::kSlice + i];
            x = __fmaf_rn(static_cast<float>(from[i]), softmax.weight[i % 4 / 2], x);
          }
        };
        constexpr bool kAhead = S.ahead && !kLast;
        constexpr int kFlight = S.slices_in_flight;
#pragma unroll
        for (int slice = 0; slice < kFlight; ++slice) {
          start_values<S, false>(sum(slice), probabilities, v, slice);
        }
        if constexpr (kAhead) scores(next);
#pragma unroll
        for (int slice = 0; slice < H::kSlices; ++slice) {
          constexpr int kBehind = kFlight - 1;
          if (slice + kFlight <= H::kSlices) {
            ptx::wgmma_wait<kBehind + kAhead>();
          } else {
            ptx::wgmma_wait<kAhead>();
          }
          flush(slice);
          if (slice + kFlight < H::kSlices) {
            start_values<S, false>(sum(slice + kFlight), probabilities, v, slice + kFlight);
          }
        }
        release(v_empty, v_turn.buffer);
        v_turn.next();
        __syncwarp();
        if constexpr (!kLast && !S.ahead) scores(next);
      } else {
#pragma unroll
        for (int slice = 0; slice < H::kSlices; ++slice) {
          using Slice = Accumulator<S.integer_o>(&)[H::kSlice];
          start_values<S, true>(reinterpret_cast<Slice>(o[slice * H::kSlice]), probabilities, v,
                                slice);
        }
        if constexpr (!kLast && S.ahead) scores(next);
        ptx::wgmma_wait<0>();
        ptx::hold(o);
        ptx::hold(probabilities);
        release(v_empty, v_turn.buffer);
        v_turn.next();
        if constexpr (!kLast && !S.ahead) scores(next);
      }
      if constexpr (!kLast) {
        ptx::wgmma_wait<0>();
        ptx::hold(s);
      }
    };

    if (item.end > 0) {
      q_turn.wait_full(q_full);
      int block = 0;
      if (end > 0) {
        scores(0);
        ptx::wgmma_wait<0>();
        ptx::hold(s);
#pragma unroll 1
        for (; block < min_of(unmasked, end - 1); ++block) {
          probabilities_of(block, Bool<false>{});
          products(block + 1, Bool<false>{});
        }
#pragma unroll 1
        for (; block < end - 1; ++block) {
          probabilities_of(block, Bool<true>{});
          products(block + 1, Bool<false>{});
        }
        probabilities_of(block++, Bool<true>{});
        products(block, Bool<true>{});
      }
      release(q_empty, q_turn.buffer);
      q_turn.next();
      // What only other warpgroups see.
#pragma unroll 1
      for (; block < item.end; ++block) {
        k_turn.wait_full(k_full);
        if constexpr (H::kTokenK) ptx::mbarrier_arrive(k_empty + 8 * k_turn.buffer);
        else release(k_empty, k_turn.buffer);
        k_turn.next();
        v_turn.wait_full(v_full);
        release(v_empty, v_turn.buffer);
        v_turn.next();
      }
    }
    softmax.finish();
    store_rows<S, H::kScaledValues && !H::kTokenV>(
        a, [&](int column, int e) { return static_cast<float>(o[4 * column + e]); },
        softmax.reference, softmax.row_sum,
        {item.batch, item.head, item.kv_head, warp_row + lane / 4}, lane);
  }
}

template <WgmmaSpec S>
__device__ __forceinline__ void attention_wgmma(const WgmmaParams& p) {
  using H = TileShape<S>;
  static_assert(sizeof(TileStorage<S>) == S.smem_bytes, "cuattn/wgmma_spec.py and TileStorage disagree");
  static_assert(S.num_threads == kWarpgroupSize * (S.groups + 1));
  extern __shared__ __align__(1024) u8 smem[];
  TileStorage<S>& storage = *reinterpret_cast<TileStorage<S>*>(smem);
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * S.groups;
    for (int i = 0; i < S.stages; ++i) {
      ptx::mbarrier_init(ptx::smem_address(&storage.k_full[i]), 1);
      ptx::mbarrier_init(ptx::smem_address(&storage.v_full[i]), 1);
      // Token scales are read by every thread for itself.
      ptx::mbarrier_init(ptx::smem_address(&storage.k_empty[i]),
                         H::kTokenK ? kWarps * kWarpSize : kWarps);
      ptx::mbarrier_init(ptx::smem_address(&storage.v_empty[i]), kWarps);
    }
    for (int i = 0; i < S.q_buffers; ++i) {
      ptx::mbarrier_init(ptx::smem_address(&storage.q_full[i]), 1);
      ptx::mbarrier_init(ptx::smem_address(&storage.q_empty[i]), kWarps);
    }
    ptx::mbarrier_fence_init();
  }
  __syncthreads();
  // Of a thread at launch; what the attending warpgroups take, the other one has to give.
  constexpr int kLaunchRegisters = 65536 / S.num_threads / 8 * 8;
  constexpr int kSpare = kLaunchRegisters * (S.groups + 1) - S.group_registers * S.groups;
  constexpr int kProducerRegisters = min_of(kSpare, kLaunchRegisters);
  static_assert(kProducerRegisters >= 24, "the attending warpgroups take too many registers");
  if (threadIdx.x / kWarpgroupSize == S.groups) {
    ptx::give_registers<kProducerRegisters>();
    if (threadIdx.x % kWarpgroupSize == 0) produce<S>(p, storage);
  } else {
    ptx::take_registers<S.group_registers>();
    attend<S>(p, storage);
  }
}
