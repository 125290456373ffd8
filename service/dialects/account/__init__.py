"""What wrangler asks about the caller before it does anything."""
