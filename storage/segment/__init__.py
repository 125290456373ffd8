"""Immutable folders of vectors, and reading them."""
