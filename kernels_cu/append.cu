// Quantizes new tokens of K and V into the units of a KV cache. A CTA has some units of one head of
// one sequence, of each of which one warp has K and another V.
#include "kv/nested_image.cuh"
#include "kv/room.cuh"
#include "kv/rope.cuh"

// Units that tokens may lie in, wherever the first of them is.
__device__ __forceinline__ int most_units(int tokens) {
  return (tokens + 2 * kUnitTokens - 2) / kUnitTokens;
}

// Where the rows of a head are in one of the caller's arrays.
struct HeadRows {
  const char* first;
  i64 stride;  // bytes
};

// Whose tokens a CTA has.
struct CtaTokens {
  int sequence;
  int kv_head;
  int head;   // counts through the batch
  int batch;  // where they are in the caller's arrays, and from which row on
  int first;
  int piece;  // units of so many CTAs are before its own
  int count;  // of the sequence, if they lie end to end
};

// Of tokens that lie end to end, CTAs of a head take shares in their order: those of part i, which
// begins at row r, are from r / kShare + 2 i on. Two more than it has rows for are enough, as its
// first token may lie anywhere in a unit. cuattn/kv/append_spec.py counts them all.
template <AppendSpec S>
__device__ __forceinline__ CtaTokens cta_tokens(const AppendParams& p) {
  constexpr int kUnits = S.num_threads / kWarpSize / 2;
  const auto pieces = [](int tokens) { return ceil_div(most_units(tokens), kUnits); };
  if constexpr (S.packed) {
    constexpr int kShare = kUnits * kUnitTokens;
    __shared__ OwnSpan own;
    if (threadIdx.x == 0) own = {0, 0, 0, 0};
    __syncthreads();
    const int share = blockIdx.x % p.packed.shares;
    const OwnSpan found = found_span<S.num_threads>(p, threadIdx.x, [&](const Span& of) {
      const int ahead = share - of.first / kShare - 2 * of.part;
      return ahead < pieces(of.count) ? ahead : -1;
    });
    if (found.count) own = found;
    __syncthreads();
    const int kv_head = blockIdx.x / p.packed.shares;
    const int head = own.sequence * p.store.num_kv_heads + kv_head;
    return {own.sequence, kv_head, head, 0, own.first, own.ahead, own.count};
  } else {
    const int ctas = pieces(p.seqlen);
    const int head = blockIdx.x / ctas;
    const int sequence = head / p.store.num_kv_heads;
    const int kv_head = head % p.store.num_kv_heads;
    return {sequence, kv_head, head, sequence, 0, static_cast<int>(blockIdx.x % ctas), 0};
  }
}

template <Type In>
__device__ __forceinline__ HeadRows rows_of(const AppendParams& p, bool values,
                                            const CtaTokens& own) {
  const i64 batch = values ? p.v_stride_batch : p.k_stride_batch;
  const i64 head = values ? p.v_stride_head : p.k_stride_head;
  const i64 token = values ? p.v_stride_token : p.k_stride_token;
  const char* first = static_cast<const char*>(values ? p.v : p.k);
  const i64 element = own.batch * batch + own.kv_head * head + own.first * token;
  return {first + element * bytes_of(In), token * bytes_of(In)};
}

// What keys of a sequence turn by, if they do.
struct KeyTurns {
  const AppendParams& p;
  HeadRows from;
  const CtaTokens& own;
  int length;
};

// Rows in float32, less an offset; `Turned` by their positions before that.
template <Type In, bool Turned, class Rows>
__device__ __forceinline__ FloatRows<Rows> floats_of(const Rows& rows,
                                                     const typename Rows::Vector& vector,
                                                     const NewTokens& fresh,
                                                     const KeyTurns& turns) {
  if constexpr (Turned) {
    const typename Rows::Vector none;
    FloatRows<Rows> x(rows, none);
    x.change([&](int r, int channel, float y) {
      const RopeParams& rope = turns.p.rope;
      const int token = rows.token(r);
      const int row = fresh.first + token;
      const bool exists = fresh.has(token);
      const int place = turns.length + row;
      const int at = turns.own.first + row;
      const int position =
          exists ? position_of(rope, turns.own.batch, at, turns.p.seqlen, place) : 0;
      const char* from = turns.from.first + row * turns.from.stride;
      return TokenTurn<In>(rope, from, position, exists)(channel, y);
    });
    x.subtract(vector);
    return x;
  } else {
    return FloatRows<Rows>(rows, vector);
  }
}

template <AppendSpec S, class Rows>
__device__ __forceinline__ void append_keys(u8* unit, Rows& rows, const NewTokens& fresh,
                                            const typename Rows::Vector& vector,
                                            const KeyTurns& turns,
                                            UnitImage<S.head_dim>& image) {
  using At = Unit<S>;
  constexpr int kGroup = At::kKGroups > 1 ? S.group : 0;
  f32* numbers = reinterpret_cast<f32*>(unit + At::kKScale);
  if constexpr (S.rotate || S.rope) {
    FloatRows<Rows> floats = floats_of<S.input, S.rope>(rows, vector, fresh, turns);
    if constexpr (S.rotate) floats.template rotate<S.head_dim>();
    const SlotNumbers<FloatRows<Rows>> scales{numbers, floats, fresh};
    put_keys(image, floats,
             SymmetricCodes<FloatRows<Rows>, S.k_bits, kGroup, false>(floats, vector, scales));
  } else {
    const SlotNumbers<Rows> scales{numbers, rows, fresh};
    const SymmetricCodes<Rows, S.k_bits, kGroup, true> codes(rows, vector, scales);
    rows.disguise();
    put_keys(image, rows, codes);
  }
  __syncwarp();
  store_keys<S.k_bits>(unit + At::kK, image, fresh);
}

template <int Bits, bool Upper, int HeadDim, class Rows>
__device__ __forceinline__ void store_values(u8* to, UnitImage<HeadDim>& image, const Rows& rows,
                                             const NewTokens& fresh) {
  if constexpr (Rows::kSingle) {
    store_slot<Bits, Upper>(to, image, rows.first_slot);
  } else {
    store_slots<Bits, Upper>(to, image, fresh);
  }
}

template <AppendSpec S, class Rows>
__device__ __forceinline__ void append_values(u8* unit, Rows& rows, const NewTokens& fresh,
                                              UnitImage<S.head_dim>& image) {
  using At = Unit<S>;
  constexpr int kGroup = At::kVGroups > 1 ? S.group : 0;
  const SlotNumbers<Rows> scales{reinterpret_cast<f32*>(unit + At::kVScale), rows, fresh};
  if constexpr (S.v_zero) {
    const SlotNumbers<Rows> zeros{reinterpret_cast<f32*>(unit + At::kVZero), rows, fresh};
    const RangeCodes<Rows, kGroup> codes(rows, scales, zeros);
    rows.disguise();
    put_values(image, rows, codes);
  } else {
    const typename Rows::Vector none;
    const SymmetricCodes<Rows, S.v_bits, kGroup, false> codes(rows, none, scales);
    rows.disguise();
    put_values(image, rows, codes);
  }
  __syncwarp();
  store_values<S.v_bits, false>(unit + At::kV, image, rows, fresh);
}

// K or V of nested codes. `fine` is where their lower halves belong, null if nowhere.
template <AppendSpec S, bool Values, class Rows>
__device__ __forceinline__ void append_nested(u8* unit, u8* fine, const Rows& from,
                                              const NewTokens& fresh,
                                              const typename Rows::Vector& vector,
                                              const KeyTurns& turns,
                                              UnitImage<S.head_dim>& image) {
  using At = Unit<S>;
  using Floats = FloatRows<Rows>;
  constexpr int kGroup = !Values && At::kKGroups > 1 ? S.group : 0;
  constexpr int kNumbers = Values ? At::kVScale : At::kKScale;
  Floats rows = floats_of<S.input, !Values && S.rope>(from, vector, fresh, turns);
  if constexpr (!Values && S.rotate) rows.template rotate<S.head_dim>();
  const SlotNumbers<Floats> upper{reinterpret_cast<f32*>(unit + kNumbers), rows, fresh};
  const SlotNumbers<Floats> whole{fine ? reinterpret_cast<f32*>(fine + kNumbers) : nullptr, rows,
                                  fresh};
  const NestedCodes<Floats, S.head_dim, kGroup> codes(rows, upper, whole);
  if constexpr (Values) {
    put_nested_values(image, rows, codes);
    __syncwarp();
    store_values<4, true>(unit + At::kV, image, rows, fresh);
    if (fine) store_values<4, false>(fine + At::kV, image, rows, fresh);
  } else {
    put_nested_keys(image, rows, codes);
    __syncwarp();
    store_keys<4, true>(unit + At::kK, image, fresh);
    if (fine) store_keys<4>(fine + At::kK, image, fresh);
  }
}

template <AppendSpec S>
__device__ __forceinline__ void append_tokens(const AppendParams& p) {
  using Rows = UnitRows<S.input, S.head_dim, S.single>;
  using Image = UnitImage<S.head_dim>;
  constexpr int kWarps = S.num_threads / kWarpSize;
  constexpr int kUnits = kWarps / 2;
  static_assert(kWarps * sizeof(Image) == S.smem_bytes, "cuattn/kv/append_spec.py disagrees");
  extern __shared__ __align__(16) u8 smem[];

  const int warp = threadIdx.x / kWarpSize;
  const bool of_values = warp % 2;
  const CtaTokens own = cta_tokens<S>(p);
  const int sequence = own.sequence;
  Rows rows;
  typename Rows::Vector vector;
  const HeadRows from = rows_of<S.input>(p, of_values, own);
  // What does not depend on the length is under way before that is there.
  if constexpr (S.single) {
    if (warp < 2) {
      rows.template load<S.aligned, S.channels>(from.first, 0, {0, 1}, of_values);
      if (!of_values && p.store.k_offset) vector.load(p.store.k_offset, own.head, S.channels);
    }
  }
  const int length = p.store.lengths[sequence];
  const int ahead = own.piece * kUnits + warp / 2;  // of the first unit of them all
  const int unit = length / kUnitTokens + ahead;
  // Counts may be wrong, which only the whole CTA finds; no other rows are read for all that.
  const int count = S.packed ? own.count : min_of(count_of<false>(p, sequence), p.seqlen);
  int coarse = 0;
  if constexpr (S.nested) {
    coarse = coarse_after(p.store, p.store.coarse[sequence], length, length + count);
  }
  const NewTokens fresh{ahead * kUnitTokens - length % kUnitTokens, count};
  AppendEnd<S.packed> append_end(p);
  const bool refused = __syncthreads_or(lacks_room<S.num_threads, S.packed>(p));
  const bool ends = warp == kWarps - 1;
  if (ends) append_end.arrive(p);

  if (!refused && fresh.any()) {
    if constexpr (S.single) {
      rows.place(length % kUnitTokens);
    } else {
      rows.template load<S.aligned, S.channels>(from.first, from.stride, fresh, of_values);
    }
    const int page = page_of(p.store, sequence, unit);
    u8* to = unit_address(p.store, page, own.kv_head, unit, Unit<S>::kBytes);
    Image& image = reinterpret_cast<Image*>(smem)[warp];
    const bool has_offset = !of_values && p.store.k_offset &&
                            unit * kUnitTokens >= bare_tokens(p.store, sequence);
    if constexpr (S.single) {
      if (!has_offset) vector = {};
    } else {
      if (has_offset) vector.load(p.store.k_offset, own.head, S.channels);
    }
    const KeyTurns turns{p, from, own, length};
    if constexpr (S.nested) {
      const bool fine = is_fine(p.store, coarse, unit);
      u8* lower = fine ? fine_address(p.store, own.head, unit, Unit<S>::kBytes) : nullptr;
      if (of_values) {
        append_nested<S, true>(to, lower, rows, fresh, vector, turns, image);
      } else {
        append_nested<S, false>(to, lower, rows, fresh, vector, turns, image);
      }
    } else if (of_values) {
      append_values<S>(to, rows, fresh, image);
    } else {
      append_keys<S>(to, rows, fresh, vector, turns, image);
    }
  }
  if (ends) append_end.finish(p, refused);
}
