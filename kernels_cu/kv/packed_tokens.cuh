// Tokens of several sequences that lie end to end in the caller's arrays, as bounds in memory say.
#pragma once
#include "kv/kv_params.cuh"

struct Span {
  int first;  // row
  int count;  // negative if the bounds make no sense
  int part;
};

// The rows of a sequence. Params have `packed`.
template <class Params>
__device__ __forceinline__ Span span_of(const Params& p, int sequence) {
  const int part = p.packed.parts ? p.packed.parts[sequence] : sequence;
  if (part < 0) return {0, 0, 0};
  const int first = p.packed.bounds[part];
  const int end = p.packed.bounds[part + 1];
  const bool is_right = 0 <= first && first <= end && end <= p.seqlen;
  return {first, is_right ? end - first : -1, part};
}

// The rows of a sequence of which a CTA, or a warp, has some.
struct OwnSpan {
  int sequence;
  int first;
  int count;  // 0: it has none
  int ahead;  // of all pieces of the sequence, those before its own
};

// The sequence of which ahead(span) is not negative, if it is among those of the calling thread: of
// `Threads` that look at them all one finds it. Bounds that make no sense may be of several.
template <int Threads, class Params, class F>
__device__ __forceinline__ OwnSpan found_span(const Params& p, int thread, F ahead) {
  OwnSpan own = {0, 0, 0, 0};
  for (int b = thread; b < p.store.batch; b += Threads) {
    const Span span = span_of(p, b);
    const int before = ahead(span);
    if (span.count > 0 && before >= 0) own = {b, span.first, span.count, before};
  }
  return own;
}
