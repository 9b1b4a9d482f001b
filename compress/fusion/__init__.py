"""Batch-norm folded into the layer before it, on modules."""
