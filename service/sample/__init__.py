"""Real word vectors to try things with; NOTICE says where they come from."""
