// Normalizes O and stores it with the log-sum-exp of its rows.
#pragma once
#include "attn/channel_terms.cuh"
#include "attn/elements.cuh"
#include "attn/p_range.cuh"
#include "attn/output_rows.cuh"
#include "attn/rotated_output.cuh"
#include "layout.cuh"
#include "params.cuh"

// The two rows that a lane sees of a tile of 16: o(i, e) is element e of MMA column i, terms(c) are
// those of channels c and c + 1. S is the spec of a kernel of either family. Columns stand for
// channels in their order, or, `Adjacent`, so that a lane's eight of every 32 are neighbours.
template <auto S, bool Adjacent, class O, class Terms>
__device__ __forceinline__ void store_in_order(const AttentionParams& p, O o, Terms terms,
                                               const float (&reference)[2],
                                               const float (&row_sum)[2], const OutputRows& rows,
                                               int lane) {
  using Element = typename ElementOf<S.out>::type;
  // What exponents have on top of a logit's, in units of log 2.
  constexpr float kShift = kStepsLog2<S> + (kBiased<S> ? kLog2Bias : 0.0f);
  const int quad_lane = lane % 4;
  const int lane_channel = (Adjacent ? 8 : 2) * quad_lane;
  float inverse[2];  // of the row sums; 0 where nothing is stored, which is finite
  float share[2];  // of its keys in a row's sum: the rest is the sink's
  bool empty[2];  // a row that sees no key: O = 0 and lse = -inf
  int end[2];     // of the channels that are stored: of a row, or from lane_channel on
  Element* to[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = rows.first + 8 * half;
    const float l = row_sum[half];
    const bool exists = row < p.seqlen_q;
    empty[half] = exists && sees_nothing<S>(p, row, reference[half], l);
    // Heads have a multiple of 8 channels.
    end[half] = exists && !empty[half] ? p.head_dim_v - (Adjacent ? lane_channel : 0) : 0;
    inverse[half] = end[half] > 0 ? 1.0f / l : 0.0f;
    to[half] = static_cast<Element*>(p.o) + rows.batch * p.o_stride_batch +
               rows.head * p.o_stride_head + row * p.o_stride_row + lane_channel;
    share[half] = 1.0f;
    if (exists && (S.rules.sinks || (p.lse && quad_lane == 0))) {
      // If all that the row sees is infinitely far below anything, O and lse are NaN.
      const float of_keys = l == 0.0f ? kNaN : (reference[half] + log2f(l) - kShift) * kLn2;
      share[half] = finish_row<S>(p, rows, row, empty[half] ? -kInf : of_keys, quad_lane == 0);
      if constexpr (S.rules.sinks) inverse[half] *= share[half];
    }
  }
  // Some columns at a time, whose terms are loaded together.
  constexpr int kColumns = S.head_dim_v / 8;
  constexpr int kAtATime = kColumns % 8 == 0 ? 8 : 4;
  auto store = [&](auto eight_at_once) {
#pragma unroll
    for (int first = 0; first < kColumns; first += kAtATime) {
      // Of column i, without the lane's.
      auto channel = [&](int i) { return 8 * first + (Adjacent ? i / 4 * 32 + i % 4 * 2 : 8 * i); };
      ChannelTerms term[kAtATime];
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) term[i] = terms(lane_channel + channel(i));
#pragma unroll
      for (int four = 0; four < kAtATime; four += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          StoredPair<S.out> pair[4];
          const auto fill = [&](auto saturates) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const ChannelTerms& c = term[four + i];
              const int column = first + four + i;
              const float2 sum = {o(column, 2 * half), o(column, 2 * half + 1)};
              const float of_keys = S.rules.sinks ? share[half] : 1.0f;
              float2 x = {sum.x * inverse[half] * c.scale.x + c.mean.x * of_keys,
                          sum.y * inverse[half] * c.scale.y + c.mean.y * of_keys};
              if constexpr (decltype(saturates)::value) x = saturated<S.out>(x, sum, c.scale);
              pair[i] = pack_pair<S.out>(x);
            }
          };
          fill(Bool<false>{});
          if (!all_finite<S.out>(pair)) fill(Bool<true>{});
          Element* four_to = to[half] + channel(four);
          if constexpr (decltype(eight_at_once)::value) {
            if (channel(four) < end[half]) store_eight<S.out>(four_to, pair);
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (channel(Adjacent ? four : four + i) < end[half]) {
                Element* to_pair = four_to + channel(i) - channel(0);
                *reinterpret_cast<StoredPair<S.out>*>(to_pair) = pair[i];
              }
            }
          }
        }
      }
    }
  };
  constexpr bool kEights = Adjacent && S.out != Type::fp32;
  const i64 strides = p.o_stride_batch | p.o_stride_head | p.o_stride_row;
  if (kEights && ((reinterpret_cast<i64>(p.o) | sizeof(Element) * strides) & 15) == 0) {
    store(Bool<kEights>{});
  } else {
    store(Bool<false>{});
  }
  if (!empty[0] && !empty[1]) return;
#pragma unroll 1
  for (int at = 2 * quad_lane - lane_channel; at < p.head_dim_v - lane_channel; at += 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (empty[half]) store_pair<S.out>(to[half] + at, {0.0f, 0.0f});
    }
  }
}

// The same, rotated back before the means are added if V is rotated.
template <auto S, bool Adjacent, class O, class Terms>
__device__ __forceinline__ void store_rows(const AttentionParams& p, O o, Terms terms,
                                           const float (&reference)[2], const float (&row_sum)[2],
                                           const OutputRows& rows, int lane) {
  if constexpr (S.v_rotated) {
    const RotatedOutput<S.head_dim_v, Adjacent> back(o, terms, p.head_dim_v, lane);
    store_in_order<S, Adjacent>(
        p, [&](int column, int e) { return back.x[column][e]; },
        [&](int channel) {
          ChannelTerms mean = terms(channel);
          mean.scale = {1.0f, 1.0f};
          return mean;
        },
        reference, row_sum, rows, lane);
  } else {
    store_in_order<S, Adjacent>(p, o, terms, reference, row_sum, rows, lane);
  }
}
