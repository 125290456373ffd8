"""What a trial holds the product to."""

from __future__ import annotations


class Broken(Exception):
    """A promise was not kept; the message says which."""


def check(holds: object, claim: str) -> None:
    """Raise Broken with the claim when it does not hold."""
    if not holds:
        raise Broken(claim)
