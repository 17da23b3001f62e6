"""What each kernel fixes at compile time: one dataclass for each spec struct of `kernels_cu/`.

`coding` says which types and scopes a `Scheme` asks of an operand. A spec knows nothing of a
GPU, a call or an address.
"""
