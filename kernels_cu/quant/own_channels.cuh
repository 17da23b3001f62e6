// Channels of a head, shared out among the threads of a CTA.
#pragma once

// Calls f(channel) for those of the thread: one, or several where there are more than threads.
template <int HeadDim, int Threads, class F>
__device__ __forceinline__ void for_own_channels(F f) {
#pragma unroll
  for (int first = 0; first < HeadDim; first += Threads) {
    const int channel = first + static_cast<int>(threadIdx.x);
    if (channel < HeadDim) f(channel);
  }
}
