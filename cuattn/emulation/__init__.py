"""The calls on arrays in host memory, computed as the kernels do by `cuattn.reference`.

May import `errors`, `scheme`, `reference`, `specs`, `arrays`, `operands` and `plan`.
"""
