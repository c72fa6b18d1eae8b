"""Data sets, a file or folder each."""
