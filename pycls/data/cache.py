"""Where this package keeps what it can make again: lists of files, the compiled decoder."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """``$PYCLS_CACHE``, else ``pycls`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It need not exist."""
    own = os.environ.get("PYCLS_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycls"


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Makes the file ``path`` as a whole, or not at all where the folder cannot be written to; whether it is there.

    Args:
        path: in the cache folder.
        write: makes the file at the path that it is given.
    """
    beside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(beside)
        os.replace(beside, path)
    except OSError:
        return path.exists()
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return True
