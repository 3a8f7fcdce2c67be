"""The one exception that users are meant to read, and what its messages are made of."""

import difflib
from collections.abc import Iterable


class CoopError(ValueError):
    """Something the user can fix: bad configuration, missing data or weights, an unreadable file.

    The message is all that a command prints, so it says what is wrong, where, what was expected, and how to fix it.
    """


def no_such_key(key: str, allowed: Iterable[str]) -> CoopError:
    """The error about a key that does not exist, with those that were perhaps meant.

    Args:
        key: with dots.
        allowed: the last parts of the keys that there are beside it.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return CoopError(f"{key}: there is no such key; {hint}Allowed here: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """What an exception of a library says, without what it adds; its class, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
