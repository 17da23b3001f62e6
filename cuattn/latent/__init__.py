"""The latent cache of DeepSeek's MLA: `cache` has `LatentKVCache`, the others what it is made of.

May import `errors`, `common`, `kv_format`, `reference`, `specs`, `arrays`, `compile`, `operands`
and `kv`.
"""
