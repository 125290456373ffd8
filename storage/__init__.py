"""What is kept, and the rules for keeping it: no HTTP, no processes."""
