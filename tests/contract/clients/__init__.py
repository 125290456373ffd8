"""Official JavaScript clients at fixed versions, and every way in which they come to us."""
