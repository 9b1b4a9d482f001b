"""How the range of an activation is chosen from what was observed: one file per answer."""
