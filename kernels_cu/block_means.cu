// The mean of each block of rows of Q, which is what smoothing subtracts from the block. A CTA for
// each block of each head.
#include "quant/moments.cuh"
#include "quant/sequence_operand.cuh"
#include "quant/smoothing_params.cuh"

template <BlockMeansSpec S>
__device__ __forceinline__ void mean_of_block(const BlockMeansParams& p) {
  using Joined = GroupMoments<S.input, S.head_dim, S.num_threads, 1>;
  using Groups = typename Joined::Groups;
  static_assert(sizeof(Joined) == S.smem_bytes, "cuattn/specs/smoothing.py disagrees");
  constexpr int kBatch = min_of(Groups::kBatch, ceil_div(kQBlock, Groups::kGroups));
  extern __shared__ __align__(16) u8 smem[];
  const int head = blockIdx.x / p.blocks;
  const int first = blockIdx.x % p.blocks * kQBlock;
  const int count = min_of(p.seqlen - first, kQBlock);

  Moments<S.input, 1> moments;
  Groups::template add_rows<S.aligned, kBatch>(
      moments, row_address<S.input>(p, head, first), p.stride_token * bytes_of(S.input), count,
      Groups::inside(p.head_dim), [](int i) { return static_cast<i64>(i); });
  f32* mean = p.mean + static_cast<i64>(blockIdx.x) * p.head_dim;
  reinterpret_cast<Joined*>(smem)->join(moments, [&](int, int channel, float sum) {
    if (channel < p.head_dim) mean[channel] = mean_of(sum, count);
  });
}

template <BlockMeansSpec S>
__device__ __forceinline__ void block_means(const BlockMeansParams& p) {
  if constexpr (S.varlen) {
    BlockMeansParams own = p;
    const Sequence at = narrow<S.input>(own, blockIdx.x / p.blocks);
    if (static_cast<int>(blockIdx.x % p.blocks) * kQBlock < at.length) mean_of_block<S>(own);
  } else {
    mean_of_block<S>(p);
  }
}
