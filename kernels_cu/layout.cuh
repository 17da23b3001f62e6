// What the quantizing and the attention kernels agree on.
#pragma once

// INT8 codes of V, and scales per token of K and V, come in whole blocks of this many tokens, so
// that no copy of a block reads past the end. What pads them is finite.
constexpr int kTokenPad = 128;
