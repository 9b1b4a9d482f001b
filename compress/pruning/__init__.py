"""Pruning: zeros held by masks, channels really removed."""
