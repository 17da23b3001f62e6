// What the kernel that unpacks codes fixes at compile time, and its run-time arguments;
// cuattn/specs/unpack.py mirrors the former, cuattn/compile/params.py reads the latter.
#pragma once
#include "numeric.cuh"

struct UnpackSpec {
  int pieces;          // of 16 codes, in one CTA
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct UnpackParams {
  const void* packed;  // codes of 4 bits, two a byte, the first in the lower half
  void* codes;         // the same, one a byte
  i64 pieces;          // of 16 codes
};
