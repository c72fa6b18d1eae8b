"""Data sets and their cache."""
