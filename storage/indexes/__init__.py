"""Ways to search one matrix: `flat` is exact, `hnsw` walks a graph."""
