"""The quantized KV cache: `cache` has `KVCache`, the other modules what it is made of.

May import `errors`, `common`, `presets`, `kv_format`, `reference`, `specs`, `arrays`, `compile`,
`operands`, `plan` and `emulation`.
"""
