"""What a run on a GPU left behind: its form, and whether it speaks for the code at hand.

May import `common`, `reference` and `compile`.
"""
