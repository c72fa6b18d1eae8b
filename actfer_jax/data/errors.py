"""What is wrong with data."""


class DataError(ValueError):
    """A data set, one sample of it, or the place where it is prepared cannot be used; the message names it."""
