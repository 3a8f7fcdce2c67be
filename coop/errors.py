"""The one exception that users are meant to read."""


class CoopError(ValueError):
    """Something the user can fix: bad configuration, missing data or weights, an unreadable file.

    The message is all that a command prints, so it says what is wrong, where, what was expected, and how to fix it.
    """
