"""Mistakes of the user, told in one message without a traceback."""


def first_line(error: BaseException) -> str:
    """An error in one line: its kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


class UserError(Exception):
    """Something that the user can mend; the command ends with exit code 2."""
