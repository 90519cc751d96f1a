"""Mistakes of the user, told in one message without a traceback."""


class UserError(Exception):
    """Something that the user can mend; the command ends with exit code 2."""
