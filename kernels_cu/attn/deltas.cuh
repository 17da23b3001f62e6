// What smoothing Q took from the exponents, in shared memory.
#pragma once

// Of the keys of a block, for some parts of a CTA's rows; nothing for 0 keys.
template <int Parts, int Keys>
struct Deltas {
  float delta[Parts][Keys];
};
template <int Parts>
struct Deltas<Parts, 0> {};
