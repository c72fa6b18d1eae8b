"""Training: configuration, state, updates, steps."""
