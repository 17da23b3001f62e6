"""What every room may use: whole numbers of parts, words, JSON with checked types, output files.

May import `cuattn.errors` only.
"""
