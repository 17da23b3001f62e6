// Lists what the Hopper family attends where sequences have lengths of their own: a unit is the
// query rows of an item, of all heads of a sequence. Those with the most keys come first, so that
// no long one is left when the others end; empty sequences have none.
#include "sequences.cuh"

// cuattn/specs/units.py mirrors it; cuattn/compile/params.py reads the arguments after it.
struct UnitsSpec {
  int rows;            // of an item
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct UnitsParams {
  const i32* cu_seqlens_q;  // as those of AttentionParams
  const i32* cu_seqlens_k;
  const i32* seqused_k;
  i32* units;          // [units, 2]: the sequence of each, and its first unit
  i32* unit_count;
  u32* next_item;      // of the attention kernel, which counts from 0 on; may be null
  i32 batch;
  i32 most;            // units that there is memory for: those of bounds that rise
  i32 total_q;
  i32 total_kv;
  i32 max_seqlen_q;
  i32 max_seqlen_kv;
};

// Units and keys of a sequence; none of those that there are not.
template <UnitsSpec S>
__device__ __forceinline__ int2 size_of(const UnitsParams& p, int batch) {
  if (batch >= p.batch) return make_int2(0, 0);
  const Sequence q = sequence_of(p.cu_seqlens_q, nullptr, batch, p.total_q, p.max_seqlen_q);
  const Sequence kv =
      sequence_of(p.cu_seqlens_k, p.seqused_k, batch, p.total_kv, p.max_seqlen_kv);
  return make_int2(ceil_div(q.length, S.rows), kv.length);
}

// A thread has a sequence, and finds where its units belong by comparing it to all others.
template <UnitsSpec S>
__device__ __forceinline__ void list_units(const UnitsParams& p) {
  __shared__ int2 others[S.num_threads];
  __shared__ int2 found[S.num_threads];
  const int first_mine = static_cast<int>(blockIdx.x) * S.num_threads;
  const int thread = static_cast<int>(threadIdx.x);
  const int mine = first_mine + thread;
  const int2 own = size_of<S>(p, mine);
  int before = 0;
  int all = 0;
  for (int first = 0; first < p.batch; first += S.num_threads) {
    __syncthreads();
    others[thread] = size_of<S>(p, first + thread);
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < S.num_threads; ++i) {
      const int2 x = others[i];
      all += x.x;
      if (x.y > own.y || (x.y == own.y && first + i < mine)) before += x.x;
    }
  }
  found[thread] = make_int2(own.x, before);
  __syncthreads();
  for (int i = 0; i < S.num_threads; ++i) {
    const int2 x = found[i];
    const int end = min_of(x.x, p.most - x.y);
    for (int unit = thread; unit < end; unit += S.num_threads) {
      reinterpret_cast<int2*>(p.units)[x.y + unit] = make_int2(first_mine + i, x.y);
    }
  }
  if (mine == 0) {
    *p.unit_count = min_of(all, p.most);
    if (p.next_item) *p.next_item = 0;
  }
}
