"""What every room may use: whole numbers of parts, remembered plans, JSON with checked types.

May import `errors`.
"""
