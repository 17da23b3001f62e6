"""Other libraries' attention, each behind the same call."""
