"""Studies: a grid of methods and seeds, each cell a run of its own, and what they say together."""
