"""What is wrong with data."""

from actfer_jax.errors import UserError


class DataError(UserError, ValueError):
    """A data set, one sample of it, or the place where it is prepared cannot be used; the message names it."""
