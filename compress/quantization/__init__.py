"""Float graphs to int8 graphs."""
