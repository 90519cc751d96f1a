"""What is wrong with data, told so that the user can mend it."""


class DataError(ValueError):
    """A data set cannot be read or used; the message names the file or setting, and what was expected."""
