// The units of a block of 128 tokens of a head in shared memory, from where all of it is read:
// codes as bytes, and what they stand for.
#pragma once
#include "kv/fine_units.cuh"
#include "kv/operands_spec.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/shared.cuh"

// What codes of a token, or of a group of its channels, are multiplied by, and what is added.
template <bool Zero, bool Exact>
struct TokenNumbers {
  float scale;
  float zero;

  // A product of bfloat16 numbers and codes of 8 bits is exact.
  __device__ __forceinline__ float value(float code) const {
    if constexpr (!Zero) return __fmul_rn(code, scale);
    if constexpr (Exact) return __fmaf_rn(code, scale, zero);
    return __fadd_rn(__fmul_rn(code, scale), zero);
  }
};

// Codes of 4 bits are read as 16 times what they are, and their scales as a 16th; both is exact.
template <OperandsSpec S>
struct CachedBlock {
  using At = Unit<S>;
  using KNumbers = TokenNumbers<S.nested, true>;
  using VNumbers = TokenNumbers<At::kHasVZero, S.nested>;
  static constexpr int kUnits = kSortedBlock / kUnitTokens;
  static constexpr int kPieces = At::kUsed / 16;
  static constexpr int kVPiece = At::kV / 16;
  static constexpr int kNumbersPiece = At::kKScale / 16;
  static_assert(kVPiece % 8 == 0 && kNumbersPiece % 8 == 0);

  // Where V has 4 bits, half of its rows (turn_values) take the place of its codes. The others are
  // behind all units, in a place for each, which has the lower halves of nested codes before.
  static constexpr int kRowsOfUnit = S.v_bits == 4 ? kUnitTokens / 2 : kUnitTokens;
  static constexpr int kMoreBytes = S.nested        ? At::kBytes
                                    : S.v_bits == 4 ? kRowsOfUnit * S.head_dim
                                                    : 0;
  static constexpr int kMoreRows = S.nested ? At::kV : 0;
  alignas(128) u8 bytes[kUnits * (At::kBytes + kMoreBytes)];

  // Where a piece of 16 bytes lies. Those that eight lanes read at a time would lie in the same
  // banks: pieces of the same token of K, and of every other or every fourth channel of V.
  static __device__ __forceinline__ int place(int piece) {
    if (piece < kVPiece) return piece ^ (piece >> 4 & 7);
    if (piece < kNumbersPiece) return piece ^ ((piece - kVPiece) >> 3 & 3);
    return piece;
  }

  // Begins to copy those units of the head that hold some of `count` tokens; `fine` has a bit for
  // each that has lower halves.
  __device__ __forceinline__ void fetch(const KvStore& store, int sequence, int kv_head, int first,
                                        int count, u32 fine) {
    const int units = min_of(ceil_div(count, kUnitTokens), kUnits);
    for (int i = threadIdx.x / kWarpSize; i < units; i += S.num_threads / kWarpSize) {
      const int page = page_of(store, sequence, first + i);
      copy(unit(i), unit_address(store, page, kv_head, first + i, At::kBytes));
      if (S.nested && fine >> i & 1) {
        const int head = sequence * store.num_kv_heads + kv_head;
        copy(more(i), fine_address(store, head, first + i, At::kBytes));
      }
    }
    ptx::cp_async_commit();
  }

  // 16 channels of a token of K, from chunk * 16 on.
  __device__ __forceinline__ uint4 keys(int token, int chunk, u32 fine) const {
    const int i = token / kUnitTokens;
    const int in_unit = token % kUnitTokens;
    if constexpr (S.k_bits == 8) return piece(unit(i), chunk * kUnitTokens + in_unit);
    return halves(i, chunk / 2 * kUnitTokens + in_unit, chunk % 2, fine);
  }

  // A channel of V of a unit, by slots.
  __device__ __forceinline__ uint4 values(int i, int channel, u32 fine) const {
    if constexpr (S.v_bits == 8) return piece(unit(i), kVPiece + channel);
    return halves(i, kVPiece + channel / 16 * 8 + channel % 8, channel / 8 % 2, fine);
  }

  // A token of V, which has taken the place of `values` of its unit.
  __device__ __forceinline__ const u8* row(int token) const {
    const int i = token / kUnitTokens;
    const int in_unit = token % kUnitTokens;
    const u8* first = in_unit < kRowsOfUnit ? unit(i) + At::kV : more(i) + kMoreRows;
    return first + in_unit % kRowsOfUnit * S.head_dim;
  }

  __device__ __forceinline__ KNumbers k_numbers(int token, int group, u32 fine) const {
    return numbers<KNumbers, S.k_bits>(At::kKScale, At::kKScale, token, group, fine);
  }
  __device__ __forceinline__ VNumbers v_numbers(int token, int group, u32 fine) const {
    return numbers<VNumbers, S.v_bits>(At::kVScale, At::kVZero, token, group, fine);
  }

 private:
  __device__ __forceinline__ const u8* unit(int i) const { return bytes + i * At::kBytes; }
  __device__ __forceinline__ const u8* more(int i) const {
    return bytes + kUnits * At::kBytes + i * kMoreBytes;
  }

  static __device__ __forceinline__ void copy(const u8* to, const u8* from) {
    const int lane = threadIdx.x % kWarpSize;
    const u32 begin = ptx::smem_address(to);
#pragma unroll
    for (int first = 0; first < kPieces; first += kWarpSize) {
      const int mine = first + lane;
      if (mine < kPieces) ptx::cp_async_16(begin + 16 * place(mine), from + 16 * mine);
    }
  }

  static __device__ __forceinline__ uint4 piece(const u8* of, int number) {
    return *reinterpret_cast<const uint4*>(of + 16 * place(number));
  }

  // The lower or the upper halves of the bytes of a piece, as the upper ones; of nested codes with
  // their own lower halves, if there are any.
  __device__ __forceinline__ uint4 halves(int i, int number, int upper, u32 fine) const {
    const int shift = upper ? 0 : 4;
    uint4 x = piece(unit(i), number);
    const auto raise = [&](u32& word) { word = word << shift & 0xf0f0f0f0u; };
    raise(x.x), raise(x.y), raise(x.z), raise(x.w);
    if (S.nested && fine >> i & 1) {
      const uint4 y = piece(more(i), number);
      const auto join = [&](u32& word, u32 low) { word |= low >> (4 - shift) & 0x0f0f0f0fu; };
      join(x.x, y.x), join(x.y, y.y), join(x.z, y.z), join(x.w, y.w);
    }
    return x;
  }

  template <class Numbers, int Bits>
  __device__ __forceinline__ Numbers numbers(int scales, int zeros, int token, int group,
                                             u32 fine) const {
    const int i = token / kUnitTokens;
    const int at = group * At::kScaleBytes + 4 * slot_of(token % kUnitTokens);
    if constexpr (S.nested) {
      const u32 pair =
          *reinterpret_cast<const u32*>((fine >> i & 1 ? more(i) : unit(i)) + scales + at);
      return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
    }
    const float scale = *reinterpret_cast<const float*>(unit(i) + scales + at);
    const float zero =
        At::kHasVZero ? *reinterpret_cast<const float*>(unit(i) + zeros + at) : 0.0f;
    return {Bits == 4 ? 0.0625f * scale : scale, zero};
  }
};
