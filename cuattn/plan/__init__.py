"""From a checked call to its launches: which kernels, on which buffers, in which order.

May import `errors`, `common`, `scheme`, `presets`, `reference`, `specs`, `arrays`, `compile`,
`records`, `auto` and `operands`.
"""
