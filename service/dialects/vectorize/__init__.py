"""Cloudflare Vectorize v2 over REST."""
