"""A search under a time limit: files that no other beats in accuracy, latency and size."""
