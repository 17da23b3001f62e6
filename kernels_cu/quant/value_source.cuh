// Blocks of V as a CTA gets them where keys are sorted: each is read twice.
#pragma once
#include "quant/storage.cuh"

template <QuantizeSpec S>
struct ValueSource {
  using V = Values<S>;
  const QuantizeOperand& x;
  int head_dim;
  QuantizeStorage<S>& storage;
  TileSource block = {};

  // As that of `RowSource`; all of the CTA is done with the block before.
  __device__ __forceinline__ void fetch(const TilePlace& at, bool exists) {
    if (exists) {
      block = tile_source<S.input>(x, at);
      if constexpr (S.v_staged) {
        storage.v.fetch(block, head_dim);
        if constexpr (S.v_smooth) {
          fetch_vector<S.head_dim_v>(storage.value_vectors.mine(),
                                   x.vector + static_cast<i64>(block.head) * head_dim, head_dim);
        }
      }
    }
    if constexpr (S.v_staged) ptx::cp_async_commit();
  }

  // Waits for what the warp has fetched of the block; the rows of K are being fetched, too.
  __device__ __forceinline__ void arrive() const {
    if constexpr (S.v_staged) {
      ptx::cp_async_wait<Rows<S, Role::key>::kStaged ? 1 : 0>();
      __syncwarp();
    }
  }

  __device__ __forceinline__ typename V::Vector vector() const {
    typename V::Vector result;
    if constexpr (S.v_smooth) {
      if constexpr (S.v_staged) {
        result.read(storage.value_vectors.mine());
      } else {
        result.load(x.vector, block.head, head_dim);
      }
    }
    return result;
  }

  // What elements of rows stand for: themselves.
  struct Meaning {
    static __device__ __forceinline__ float value(int, int, float x) { return x; }
  };
  template <class Order>
  __device__ __forceinline__ Meaning meaning(const Order&) const {
    return {};
  }

  // Some rows. `Once`: nobody will read them again.
  template <bool Once, class Order>
  __device__ __forceinline__ void read(typename V::Tile& tile, const Order& order) const {
    if constexpr (S.v_staged) {
      tile.read(storage.v, order);
    } else {
      tile.template load<S.aligned, Once>(block, order, head_dim);
    }
  }
};
