"""What the schemes "auto" and "auto-block" stand for in a call: tables of times, and how to choose.

May import `errors`, `common`, `presets`, `reference`, `arrays`, `compile` and `records`.
"""
