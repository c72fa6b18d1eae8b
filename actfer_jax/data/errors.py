"""The error of unusable data."""

from actfer_jax.errors import UserError


class DataError(UserError, ValueError):
    """A data set, one of its samples, or the directory where it is prepared cannot be used; the message names it."""
