"""Masks and real channel removal."""
