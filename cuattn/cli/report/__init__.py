"""``cuattn report``: the command, its tables, its plot and its page.

Measuring itself is the business of `cuattn.choice`, which knows nothing of command lines.
"""
