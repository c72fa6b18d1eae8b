"""Whether a run fits on TPUs, by their own compiler."""
