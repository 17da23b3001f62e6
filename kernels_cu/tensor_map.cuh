// What cp.async.bulk.tensor has to know of an array; the driver writes it for
// cuattn/compile/tensor_map.py.
#pragma once
#include "numeric.cuh"

// The driver's CUtensorMap. A kernel takes it by value, as a __grid_constant__, and uses nothing of
// it but its address.
struct alignas(64) TensorMap {
  u64 opaque[16];
};
