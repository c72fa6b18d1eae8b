"""Checks with the TPU's compiler whether a run fits on TPUs, and what it takes there."""
