// A few kilobytes of every rank become known to all: each writes its own into the others' memory.
// Every word of 4 bytes comes with the number of the exchange, as one of 8, so that whoever finds
// the number has the word, and nothing else is waited for. One CTA.
//
// A rank has two mailboxes for each rank, taken in turn. That of an exchange is written to again
// two exchanges later, by a rank that has heard of the one between: which whom it hears of began
// when it had read all of the first.
#include "numeric.cuh"
#include "ptx/system_memory.cuh"

// cuattn/distributed/mailboxes.py mirrors it; cuattn/compile/params.py reads the arguments.
struct MailboxSpec {
  int ranks;           // at most
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct RankMemory {
  u64* boxes;          // [2][rank][capacity], on that rank's GPU
};

struct MailboxParams {
  RankMemory memory[16];
  const u32* own;      // [words], at a multiple of 8 bytes
  u32* every;          // [rank][words], likewise
  u32* exchanges;      // how many there have been
  const u32* closed;   // of the host: not 0 if nobody may wait any more
  i32 rank;            // this one
  i32 ranks;
  i32 words;           // an even number, at most capacity
  i32 capacity;
};

// Looks at a mailbox between two at the host's memory, which takes longer.
constexpr u32 kLooks = 4096;

__device__ __forceinline__ i64 box_of(const MailboxParams& p, u32 number, int sender) {
  return static_cast<i64>(number % 2 * p.ranks + sender) * p.capacity;
}

template <MailboxSpec S>
__device__ __forceinline__ void exchange(const MailboxParams& p) {
  static_assert(S.ranks == sizeof(MailboxParams::memory) / sizeof(RankMemory));
  const u32 number = *p.exchanges + 1;
  const u64 mark = static_cast<u64>(number) << 32;
  const uint2* own = reinterpret_cast<const uint2*>(p.own);
  uint2* every = reinterpret_cast<uint2*>(p.every);
  const int pairs = p.words / 2;
  for (int i = threadIdx.x; i < pairs; i += S.num_threads) {
    const uint2 x = own[i];
    for (int n = 1; n < p.ranks; ++n) {
      u64* boxes = p.memory[(p.rank + n) % p.ranks].boxes + box_of(p, number, p.rank);
      ptx::store_system(boxes + 2 * i, mark | x.x, mark | x.y);
    }
    every[p.rank * pairs + i] = x;  // where it may be already
  }
  for (int n = 1; n < p.ranks; ++n) {
    const int sender = (p.rank + n) % p.ranks;
    const u64* box = p.memory[p.rank].boxes + box_of(p, number, sender);
    for (int i = threadIdx.x; i < pairs; i += S.num_threads) {
      u64 first, second;
      ptx::load_system(first, second, box + 2 * i);
      for (u32 looks = 1; first >> 32 != number || second >> 32 != number; ++looks) {
        if (looks % kLooks == 0 && ptx::load_system(p.closed)) return;
        ptx::load_system(first, second, box + 2 * i);
      }
      every[sender * pairs + i] = make_uint2(static_cast<u32>(first), static_cast<u32>(second));
    }
  }
  __syncthreads();  // all threads have read the number of exchanges
  if (threadIdx.x == 0) *p.exchanges = number;
}
