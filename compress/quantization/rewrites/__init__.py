"""Graph rewrites, one file each, exact in float."""
