"""Episodes on disk and on screen."""
