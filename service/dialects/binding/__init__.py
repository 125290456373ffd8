"""The protocol behind a Worker's `env.VECTORIZE`, so that an unchanged Worker has this server behind it."""
