"""Headrace, its peers and its limits, measured on the same data in one run; see `scripts/bench`."""
