"""The quantized KV cache: `cache` has `KVCache`, the other modules what it is made of."""
