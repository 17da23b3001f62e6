"""`cuattn bench`: the command, its tables and its page."""
