"""How wrong a scheme is, how fast, and which one to take: for calls, layers and steps.

May import `errors`, `common`, `scheme`, `presets`, `kv_format`, `reference`, `arrays`, `plan`,
`attention` and `kv`.
"""
