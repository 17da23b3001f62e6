// Merges what decode_latent.cu has left of heads that several of its CTAs have tokens of, where one
// of those would have many parts to read. A CTA has a row, a thread four of its channels.
#include "kv/latent_merge.cuh"

template <LatentMergeSpec S>
__device__ __forceinline__ void merge_latent(const DecodeParams& p) {
  constexpr DecodeSpec kShare = latent_share(S.input, S.rows, 1);
  constexpr int kAtATime = 16;  // parts
  static_assert(S.num_threads == kLatent / 4);
  const Partition<kShare> partition(p);
  BlockCursor at;
  const int tile = blockIdx.x / S.rows;
  const int row = blockIdx.x % S.rows;
  at.sequence = quotient(tile, partition.heads);
  at.head = tile - at.sequence * partition.heads;
  partition.count(at, __ldg(p.store.lengths + at.sequence));
  const RowPlace place = RowPlace::of<kShare>(p, at.head, row);
  const int begin = partition.places_before(at.sequence) * partition.heads + at.head * at.blocks;
  if (!place.exists || at.blocks == 0) return;
  const HeadParts<kShare> parts = latent_parts(p, partition, begin, at.blocks);
  if (parts.count > 1) {
    merge_latent_row<kShare, S.num_threads, kAtATime>(p, at, parts, place, row);
  }
}
