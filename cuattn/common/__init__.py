"""What every room may use: whole numbers of parts, remembered plans, JSON with checked types, and
what public functions do before anything else.

May import `errors`.
"""
