"""What Q, K and V are: the checks of a call, how codes lie in memory, and `QuantizedTensor`.

May import `errors`, `common`, `scheme`, `presets`, `reference`, `specs` and `arrays`.
"""
