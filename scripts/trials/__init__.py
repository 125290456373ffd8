"""Trials of what is promised; run by `scripts/torture`."""
