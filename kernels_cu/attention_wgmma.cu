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
#include "ptx/opaque.cuh"
#include "ptx/registers.cuh"

template <WgmmaSpec S>
__device__ __forceinline__ void attend(const WgmmaParams& p, TileStorage<S>& storage) {
  using H = TileShape<S>;
  const AttentionParams& a = p.attention;
  const int lane = threadIdx.x % kWarpSize;
  // Broadcast, so that the compiler knows it to be the same for all lanes.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const int group = warp / 4;
  const u32 full = ptx::smem_address(storage.full);
  const u32 empty = ptx::smem_address(storage.empty);
  const u32 q_full = ptx::smem_address(storage.q_full);
  const u32 q_empty = ptx::smem_address(storage.q_empty);
  const u64 q_tile = k_major<typename H::QTile>(ptx::smem_address(storage.q[0][group]));
  const u64 k_tile = k_major<typename H::KTile>(ptx::smem_address(storage.k));
  const u32 v_address = ptx::smem_address(storage.v);
  const u64 v_tile = H::kScaledValues ? k_major<typename H::VTile>(v_address)
                                      : mn_major<typename H::VTile>(v_address);

  Turn<S.stages> kv;
  Turn<S.q_buffers> q;
  auto release = [&] {
    // Scales are read by every lane for itself.
    if (H::kScaledScores || lane == 0) ptx::mbarrier_arrive(empty + 8 * kv.buffer);
    kv.next();
  };

  while (true) {
    q.wait_full(q_full);
    int index = lane == 0 ? storage.item[q.buffer] : 0;
    index = __shfl_sync(0xffffffffu, index, 0);
    if (index == kNoItem) return;
    const Item<S> item(p, index);
    const int first_row = item.first_row + group * kGroupRows;
    const int warp_row = first_row + warp % 4 * 16;
    const KeyBlocks blocks = item.blocks(a, first_row);

    Accumulator<S.integer_o> o[H::kOutput] = {};
    GroupSoftmax<S> softmax;
    softmax.start(a, item, warp_row, lane);
    typename GroupSoftmax<S>::Scores s;
    u32 probabilities[H::kProbabilities];

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
    auto scores = [&](const Turn<S.stages>& from) {
      from.wait_full(full);
      start_scores<S>(s, ptx::advance(q_tile, q.buffer * S.groups * H::QTile::bytes),
                      ptx::advance(k_tile, from.buffer * H::KTile::bytes));
    };
    // Adds a slice of P V to O.
    auto flush = [&](auto& sum, int slice) {
      ptx::hold(sum);
#pragma unroll
      for (int i = 0; i < H::kSlice; ++i) {
        auto& x = o[slice * H::kSlice + i];
        x = __fmaf_rn(static_cast<float>(sum[i]), softmax.weight[i % 4 / 2], x);
      }
    };
    // From the scores of a block to those of the next, unless this is the last one.
    auto step = [&](int block, auto masked, auto last) {
      constexpr bool kMasked = decltype(masked)::value;
      constexpr bool kLast = decltype(last)::value;
      const TokenScales<S>& keys = storage.scales[kv.buffer];
      const u64 v = ptx::advance(v_tile, kv.buffer * H::VTile::bytes);
      softmax.template begin<kMasked>(s, keys, Mask<S>(a, warp_row, block, lane), lane, rescale);
      if constexpr (S.interleaved) {
        static_assert(!S.interleaved || H::kSlices == 1);
        Accumulator<H::kIntegerValues> own[H::kFlush ? H::kSlice : 1];
        auto& sum = either<H::kFlush>(own, o);
        ptx::hold(sum);
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, i, lane);
          ptx::hold(probabilities);
          ptx::wgmma_fence();
          if (i == 0) {
            start_value_step<S, !H::kFlush>(sum, probabilities, v, 0, i);
          } else {
            start_value_step<S, true>(sum, probabilities, v, 0, i);
          }
        }
        ptx::wgmma_commit();
        softmax.end(rescale);
        if constexpr (!kLast) {
          Turn<S.stages> next = kv;
          next.next();
          scores(next);
        }
        ptx::wgmma_wait<!kLast>();
        ptx::hold(sum);
        ptx::hold(probabilities);
        release();
        if constexpr (H::kFlush) flush(sum, 0);
      } else {
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, i, lane);
        }
        softmax.end(rescale);
        if constexpr (H::kFlush) {
          // Some slices at a time. A single one takes the registers of the scores if it fits them.
          constexpr int kFlight = min_of(H::kSlices, 2);
          constexpr int kOwn = kFlight * H::kSlice;
          constexpr bool kAgain =
              H::kIntegerScores == H::kIntegerValues && H::kSlice == H::kScores;
          Accumulator<H::kIntegerValues> own[kAgain ? 1 : kOwn];
          auto& sums = either<!kAgain>(own, s);
          auto sum = [&](int slice) -> auto& {
            using Slice = Accumulator<H::kIntegerValues>(&)[H::kSlice];
            return reinterpret_cast<Slice>(sums[slice % kFlight * H::kSlice]);
          };
#pragma unroll
          for (int slice = 0; slice < H::kSlices + kFlight - 1; ++slice) {
            if (slice < H::kSlices) {
              start_values<S, false>(sum(slice), probabilities, v, slice);
            }
            if (slice >= kFlight - 1) {
              if (slice < H::kSlices) {
                ptx::wgmma_wait<kFlight - 1>();
              } else {
                ptx::wgmma_wait<0>();
              }
              flush(sum(slice - kFlight + 1), slice - kFlight + 1);
            }
          }
        } else {
#pragma unroll
          for (int slice = 0; slice < H::kSlices; ++slice) {
            using Slice = Accumulator<S.integer_o>(&)[H::kSlice];
            start_values<S, true>(reinterpret_cast<Slice>(o[slice * H::kSlice]), probabilities, v,
                                  slice);
          }
          ptx::wgmma_wait<0>();
          ptx::hold(o);
        }
        ptx::hold(probabilities);
        release();
        if constexpr (!kLast) scores(kv);
      }
      if constexpr (!kLast) {
        ptx::wgmma_wait<0>();
        ptx::hold(s);
      }
    };

    int block = 0;
    if (blocks.end > 0) {
      scores(kv);
      ptx::wgmma_wait<0>();
      ptx::hold(s);
#pragma unroll 1
      for (; block < min_of(blocks.unmasked, blocks.end - 1); ++block) {
        step(block, Bool<false>{}, Bool<false>{});
      }
#pragma unroll 1
      for (; block < blocks.end - 1; ++block) step(block, Bool<true>{}, Bool<false>{});
      step(block++, Bool<true>{}, Bool<true>{});
    }
    if (lane == 0) ptx::mbarrier_arrive(q_empty + 8 * q.buffer);
    q.next();
    // What only other warpgroups see.
#pragma unroll 1
    for (; block < item.end; ++block) {
      kv.wait_full(full);
      release();
    }
    softmax.finish();
    // Worked out anew, so that the loop has its registers.
    const Item<S> done(p, ptx::opaque(index));
    store_rows<S, H::kScaledValues && !H::kTokenV>(
        a, [&](int column, int e) { return static_cast<float>(o[4 * column + e]); },
        softmax.reference, softmax.row_sum,
        {done.batch, done.head, done.kv_head, warp_row + lane / 4}, lane);
  }
}

template <WgmmaSpec S>
__device__ __forceinline__ void attention_wgmma(const WgmmaParams& p) {
  using H = TileShape<S>;
  static_assert(sizeof(TileStorage<S>) == S.smem_bytes,
                "cuattn/wgmma_spec.py and TileStorage disagree");
  static_assert(S.num_threads == kWarpgroupSize * (S.groups + 1));
  extern __shared__ __align__(1024) u8 smem[];
  TileStorage<S>& storage = *reinterpret_cast<TileStorage<S>*>(smem);
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * S.groups;
    for (int i = 0; i < S.stages; ++i) {
      ptx::mbarrier_init(ptx::smem_address(&storage.full[i]), 1);
      ptx::mbarrier_init(ptx::smem_address(&storage.empty[i]),
                         H::kScaledScores ? kWarps * kWarpSize : kWarps);
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
