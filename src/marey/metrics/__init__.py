"""Scores and labels to numbers: pure functions on arrays."""
