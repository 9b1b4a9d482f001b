"""What runs a model file: one small interface, one file for each runtime, each the only door to its library."""
