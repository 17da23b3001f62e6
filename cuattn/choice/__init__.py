"""How wrong a scheme is, how fast, and which one to take: for calls, layers and steps."""
