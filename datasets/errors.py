"""What readers raise."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file or picture and says what would be valid."""
