"""The episodes and rewards of this package for other people's trainers, a module for each library."""
