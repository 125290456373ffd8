"""The process that applies mutations and builds segments."""
