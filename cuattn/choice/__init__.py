"""How wrong a scheme is, how fast, and which one to take: for calls, layers and steps.

May import `cuattn.attention` and what that stands on; records, benchmarks and commands import it.
"""
