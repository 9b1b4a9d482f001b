"""From what the user names to modules, graphs and data."""
