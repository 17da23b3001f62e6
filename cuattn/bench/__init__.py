"""What `cuattn bench` measures: the GPU's ceilings, our calls, those of other libraries, errors.

May import `errors`, `common`, `scheme`, `presets`, `kv_format`, `reference`, `specs`, `arrays`,
`compile`, `records`, `auto`, `operands`, `plan`, `kv`, `choice` and `cuattn` itself.
"""
