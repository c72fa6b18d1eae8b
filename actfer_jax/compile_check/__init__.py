"""Checks with the TPU's compiler whether a run fits on TPUs."""
