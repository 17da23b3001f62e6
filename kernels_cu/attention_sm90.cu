// Attention with warpgroup-level matrix products, for sm_90a.
//
// Some warpgroups attend, each with 64 query rows of one head. Of one more, a thread streams that
// head's keys and values past all of them, and three warps fetch what stays the same for all keys.
// Per block of keys a warpgroup has:
//   start_scores  S = Q K^T on the tensor cores
//   GroupSoftmax  S -> P, with the row maximum of the block or of all blocks so far
//   start_values  P V on the tensor cores, in int32 or float32
//   flush         O += P V, if O is not the accumulator itself
#include "attn/output.cuh"
#include "ptx/registers.cuh"
#include "sm90/clear_values.cuh"
#include "sm90/group_softmax.cuh"
#include "sm90/item_loader.cuh"
#include "sm90/producer.cuh"
#include "sm90/products.cuh"
#include "sm90/tile_storage.cuh"
#include "tile/turns.cuh"

template <WgmmaSpec S>
__device__ __forceinline__ void attend(const WgmmaParams& p, TileStorage<S>& storage) {
  using H = TileShape<S>;
  int lane = threadIdx.x % kWarpSize;
  // Products wait for what follows from it.
  if constexpr (kColumnStarts<S>) lane = ptx::opaque(lane);
  const int warp = ptx::warp_number();
  const int group = warp / 4;
  const int item_row = warp * 16 + lane / 4;  // the first of two
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
    const ItemConstants<S>& constants = storage.constants[q.buffer];
    const Item<S> item = constants.item;
    const auto& a = item.arguments(p.attention);
    const BlockRange blocks = item.blocks(a, item.first_row + group * kGroupRows);
    const int warp_row = item.first_row + warp * 16;
    const ScoreRules<S> rules(a, item.batch, item.head, warp_row, lane);

    Accumulator<S.integer_o> o[H::kOutput] = {};
    GroupSoftmax<S> softmax;
    softmax.exponents.starts.tokens = storage.of_warp(warp);
    softmax.start(a, constants, rules, item_row, ptx::smem_address(storage.rows + threadIdx.x));
    typename GroupSoftmax<S>::Scores s;
    u32 probabilities[kTerms<S>][H::kProbabilities];

    // With float_sums O has kMagic * bias too much, bias being the sum of the weights of the blocks
    // since it was last taken off. It is at most 49345 times these blocks' row sum, as the largest
    // P of a block is 255: so float32 rounds O by no more than 1/40 of a step of V, however many
    // keys there are (docs/numerics.md, section 11), and needs a multiply-add in four blocks.
    constexpr int kBiasedBlocks = 4;
    float bias[2] = {};
    auto take_bias_off = [&] {
#pragma unroll
      for (int i = 0; i < H::kOutput; ++i) o[i] = __fmaf_rn(-kMagic, bias[i % 4 / 2], o[i]);
      bias[0] = bias[1] = 0.0f;
    };
    auto rescale = [&](int half, int steps, float shrink) {
      if constexpr (S.float_sums) bias[half] *= shrink;
#pragma unroll
      for (int i = 0; i < H::kOutput / 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          auto& x = o[4 * i + 2 * half + e];
          if constexpr (S.integer_o) {
            x >>= steps;
          } else {
            x *= shrink;
          }
        }
      }
    };
    // `s` is not to be read before `finish_scores`.
    auto start_scores_of = [&](const Turn<S.stages>& from) {
      from.wait_full(full);
      if constexpr (kColumnStarts<S>) {
        softmax.exponents.starts.begin(s, softmax.rows, storage.scales[from.buffer],
                                       a.order != nullptr, lane);
      }
      start_scores<S>(s, ptx::advance(q_tile, q.buffer * S.groups * H::QTile::bytes),
                      ptx::advance(k_tile, from.buffer * H::KTile::bytes));
    };
    auto finish_scores = [&] {
      ptx::wgmma_wait<0>();
      ptx::hold(s);
    };
    // Adds a slice of the channels of P V, of one term of P, to O.
    auto flush = [&](auto& sum, int slice, int term) {
      ptx::hold(sum);
      const float of_term = softmax.value_scale * term_weight<S>(a, term);
#pragma unroll
      for (int i = 0; i < H::kSlice; ++i) {
        auto& x = o[slice * H::kSlice + i];
        float y;
        if constexpr (S.float_sums) {
          y = __int_as_float(sum[i]);
        } else {
          y = static_cast<float>(sum[i]);
        }
        x = __fmaf_rn(y, softmax.weight[i % 4 / 2] * of_term, x);
      }
    };
    // One block of keys. Unless all goes in turn, its scores are there, and those of the next block
    // are when it ends if it is not the last one of a run.
    auto step = [&](int block, auto masked, auto last) {
      constexpr bool kMasked = decltype(masked)::value;
      constexpr bool kLast = decltype(last)::value;
      if constexpr (S.order == Order::in_turn) {
        start_scores_of(kv);
        finish_scores();
      }
      const TokenScales<S>& keys = storage.scales[kv.buffer];
      const u64 v = ptx::advance(v_tile, kv.buffer * H::VTile::bytes);
      if constexpr (kMasked && S.rules.varlen && !H::kScaledValues) {
        clear_values<S>(v_address + kv.buffer * H::VTile::bytes, a.seqlen_kv - block * S.block_kv,
                        group);
      }
      softmax.template begin<kMasked>(s, keys, rules,
                                      Mask<S>(a, rules.mask, warp_row, block, lane), block, group,
                                      lane, rescale);
      if constexpr (S.order == Order::interleaved) {
        static_assert(S.order != Order::interleaved || (H::kSlices == 1 && kTerms<S> == 1));
        Accumulator<H::kIntegerValues> own[H::kFlush ? H::kSlice : 1];
        auto& sum = either<H::kFlush>(own, o);
        ptx::hold(sum);
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, a, i, lane);
          ptx::hold(probabilities[0]);
          ptx::wgmma_fence();
          if (i == 0) {
            start_value_step<S, !H::kFlush>(sum, probabilities[0], v, 0, i);
          } else {
            start_value_step<S, true>(sum, probabilities[0], v, 0, i);
          }
        }
        ptx::wgmma_commit();
        softmax.end(keys, rescale);
        if constexpr (!kLast) {
          Turn<S.stages> next = kv;
          next.next();
          start_scores_of(next);
        }
        ptx::wgmma_wait<!kLast>();
        ptx::hold(sum);
        ptx::hold(probabilities[0]);
        release();
        if constexpr (H::kFlush) flush(sum, 0, 0);
        if constexpr (!kLast) finish_scores();
      } else {
#pragma unroll
        for (int i = 0; i < H::kValueSteps; ++i) {
          softmax.template exponentiate<kMasked>(probabilities, s, keys, a, i, lane);
        }
        if constexpr (H::kFlush) {
          // Some parts at a time, slices of a term. A single one takes the registers of the scores
          // if it fits them.
          constexpr int kParts = kTerms<S> * H::kSlices;
          constexpr int kFlight = min_of(kParts, 2);
          constexpr int kOwn = kFlight * H::kSlice;
          constexpr bool kAgain = H::kIntegerScores == H::kIntegerValues && kParts == 1 &&
                                  H::kSlice == H::kScores;
          Accumulator<H::kIntegerValues> own[kAgain ? 1 : kOwn];
          auto& sums = either<!kAgain>(own, s);
          auto sum = [&](int part) -> auto& {
            using Slice = Accumulator<H::kIntegerValues>(&)[H::kSlice];
            return reinterpret_cast<Slice>(sums[part % kFlight * H::kSlice]);
          };
#pragma unroll
          for (int part = 0; part < kParts + kFlight - 1; ++part) {
            if (part < kParts) {
              if constexpr (S.float_sums) {
#pragma unroll
                for (auto& x : sum(part)) x = __builtin_bit_cast(int, kMagic);
              }
              start_values<S, S.float_sums>(sum(part), probabilities[part / H::kSlices], v,
                                            part % H::kSlices);
            }
            if (part == kFlight - 1) softmax.end(keys, rescale);
            if (part >= kFlight - 1) {
              if (part < kParts) {
                ptx::wgmma_wait<kFlight - 1>();
              } else {
                ptx::wgmma_wait<0>();
              }
              const int done = part - kFlight + 1;
              flush(sum(done), done % H::kSlices, done / H::kSlices);
            }
          }
        } else {
#pragma unroll
          for (int slice = 0; slice < H::kSlices; ++slice) {
            using Slice = Accumulator<S.integer_o>(&)[H::kSlice];
            start_values<S, true>(reinterpret_cast<Slice>(o[slice * H::kSlice]), probabilities[0],
                                  v, slice);
          }
          softmax.end(keys, rescale);
          ptx::wgmma_wait<0>();
          ptx::hold(o);
        }
#pragma unroll
        for (auto& term : probabilities) ptx::hold(term);
        release();
        if constexpr (S.float_sums) {
#pragma unroll
          for (int half = 0; half < 2; ++half) bias[half] += softmax.weight[half];
          if (block % kBiasedBlocks == kBiasedBlocks - 1) take_bias_off();
        }
        if constexpr (S.order == Order::ahead && !kLast) {
          start_scores_of(kv);
          finish_scores();
        }
      }
    };

    constexpr bool kLastApart = S.order != Order::in_turn;
    constexpr bool kHides = S.rules.mask_mod;
    auto begin_steps = [&] {
      if constexpr (kLastApart) {
        start_scores_of(kv);
        finish_scores();
      }
    };
    // What only other warpgroups see.
    auto pass = [&] {
      kv.wait_full(full);
      release();
    };
    if constexpr (S.rules.mapped()) {
      const auto is_seen = [&](int block) {
        return block >= blocks.all.begin && block < blocks.all.end;
      };
      Visits<S, S.groups> visits = item.visits(a);
      const Visits<S, 1> own(a, item.batch, item.head, item.first_row + group * kGroupRows,
                             blocks.all);
      bool begins = true;
      for (int block = visits.next(); block >= 0;) {
        const int next = visits.next();
        if (!is_seen(block)) {
          pass();
        } else {
          if (begins) begin_steps();
          begins = !is_seen(next);
          if (kLastApart && begins) {
            step(block, Bool<true>{}, Bool<true>{});
          } else if (!kHides && block >= blocks.whole.begin && block < blocks.whole.end &&
                     own.whole(a, block)) {
            step(block, Bool<kHides>{}, Bool<false>{});
          } else {
            step(block, Bool<true>{}, Bool<false>{});
          }
        }
        block = next;
      }
    } else {
      // The blocks of the item, then the first one: the order of `Visits`.
      int block = max_of(item.all.begin, 1);
      int end = item.all.end;
#pragma unroll 1
      for (int round = 0; round < 2; ++round) {
        const int first = max_of(block, blocks.all.begin);
        const int last = min_of(end, blocks.all.end) - kLastApart;
        for (; block < min_of(first, end); ++block) pass();
        if (first < last + kLastApart) {
          begin_steps();
          if constexpr (S.rules.windowed && !kHides) {
#pragma unroll 1
            for (; block < min_of(blocks.whole.begin, last); ++block) {
              step(block, Bool<true>{}, Bool<false>{});
            }
          }
          if constexpr (!kHides) {
#pragma unroll 1
            for (; block < min_of(blocks.whole.end, last); ++block) {
              step(block, Bool<false>{}, Bool<false>{});
            }
          }
          if constexpr (S.is_causal || S.rules.windowed || !kLastApart || kHides) {
#pragma unroll 1
            for (; block < last; ++block) step(block, Bool<true>{}, Bool<false>{});
          }
          if constexpr (kLastApart) {
            if (!kHides && block >= blocks.whole.begin && block < blocks.whole.end) {
              step(block++, Bool<kHides>{}, Bool<true>{});
            } else {
              step(block++, Bool<true>{}, Bool<true>{});
            }
          }
        }
        for (; block < end; ++block) pass();
        block = 0;
        end = item.all.begin == 0 ? min_of(item.all.end, 1) : 0;
      }
    }
    if constexpr (S.float_sums) take_bias_off();
    softmax.rows.finish();
    rules.finish(softmax.rows.reference);
    // Read anew, so that the loop has its registers.
    const ItemConstants<S>& done = storage.constants[ptx::opaque(q.buffer)];
    const auto& of_rows = done.item.arguments(p.attention);
    store_rows<S, H::kScaledValues>(
        of_rows, [&](int column, int e) { return static_cast<float>(o[4 * column + e]); },
        [&](int channel) {
          ChannelTerms terms;
          terms.mean = *reinterpret_cast<const float2*>(done.channel_mean + channel);
          if constexpr (H::kChannelScale) {
            terms.scale = *reinterpret_cast<const float2*>(done.channel_scale + channel);
          }
          return terms;
        },
        softmax.rows.reference, softmax.rows.sum,
        {done.item.batch, done.item.head, done.item.first_row + item_row}, lane);
    ptx::mbarrier_arrive(q_empty + 8 * q.buffer);
    q.next();
  }
}

template <WgmmaSpec S>
__device__ __forceinline__ void attention_wgmma(const WgmmaParams& p) {
  using H = TileShape<S>;
  static_assert(sizeof(TileStorage<S>) == S.smem_bytes,
                "cuattn/specs/wgmma.py and TileStorage disagree");
  static_assert(S.num_threads == kWarpgroupSize * (S.groups + 1));
  extern __shared__ __align__(1024) u8 smem[];
  TileStorage<S>& storage = *reinterpret_cast<TileStorage<S>*>(smem);
  // Of the last warpgroup, the first warp has the thread that copies, the others load constants.
  constexpr int kLoaders = kWarpgroupSize - kWarpSize;
  if (threadIdx.x == 0) {
    ptx::prefetch(p.q_map);
    ptx::prefetch(p.k_map);
    ptx::prefetch(p.v_map);
    constexpr int kWarps = 4 * S.groups;
    for (int i = 0; i < S.stages; ++i) {
      ptx::mbarrier_init(ptx::smem_address(&storage.full[i]), 1);
      ptx::mbarrier_init(ptx::smem_address(&storage.empty[i]),
                         H::kScaledScores ? kWarps * kWarpSize : kWarps);
    }
    for (int i = 0; i < S.q_buffers; ++i) {
      ptx::mbarrier_init(ptx::smem_address(&storage.drawn[i]), 1);
      ptx::mbarrier_init(ptx::smem_address(&storage.q_full[i]), 1 + kLoaders);
      ptx::mbarrier_init(ptx::smem_address(&storage.q_empty[i]), kWarps * kWarpSize);
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
    const int thread = threadIdx.x % kWarpgroupSize;
    if (thread == 0) produce<S>(p, storage);
    if (thread >= kWarpSize) load_constants<S, kLoaders>(p, storage, thread - kWarpSize);
  } else {
    ptx::take_registers<S.group_registers>();
    attend<S>(p, storage);
  }
}
