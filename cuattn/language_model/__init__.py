"""Language models of Llama's kind as judges: what quantized attention makes of their predictions.

May import `errors`, `common`, `scheme`, `reference`, `attention`, `kv` and `choice`.
"""
