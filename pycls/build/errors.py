"""A constructor's complaint as the user's error."""

import contextlib
from collections.abc import Iterator

from pycls.data.dataset import with_classes as with_classes
from pycls.errors import InputError


@contextlib.contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Turns a constructor's ``ValueError`` into an :class:`InputError` that says which section it is about."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error
