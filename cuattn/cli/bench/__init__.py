"""``cuattn bench``: the command, its options, its tables and its page.

Measuring itself is the business of `cuattn.bench`, which knows nothing of command lines.
"""
