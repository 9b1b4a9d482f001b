"""The `compress` command: parse, call `compress`, print."""
