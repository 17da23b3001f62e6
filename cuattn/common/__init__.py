"""Whole numbers of parts, and JSON files with checked types: what every room may use."""
