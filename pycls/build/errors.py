"""A constructor's complaint as the user's error."""

import contextlib
from collections.abc import Iterator

from pycls.errors import InputError


@contextlib.contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Turns a constructor's ``ValueError`` into an :class:`InputError` that says which section it is about."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        named = str(error).startswith(where)  # a component may name itself
        raise InputError(str(error) if named else f"{where}: {error}") from error
