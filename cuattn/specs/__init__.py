"""What kernels fix at compile time: one dataclass for each spec struct of `kernels_cu/`.

`coding` says which types, scopes and orders of memory a `Scheme` asks of an operand. Nothing here
knows a GPU, a call or an address.

May import `common`, `scheme` and `reference`.
"""
