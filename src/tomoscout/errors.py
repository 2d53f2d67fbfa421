"""The errors a user is meant to read."""


class TomoscoutError(Exception):
    """Something the user can mend. The message is one line that names the file, run or key at fault,
    what was found there, and what was expected."""
