"""The folder where what was fetched or made is kept between runs, and the place in it of what a URL names."""

import contextlib
import hashlib
import os
import re
import secrets
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from pycls.errors import InputError


def cache_dir() -> Path:
    """``$PYCLS_CACHE``, else ``pycls`` in the user's cache directory (``$XDG_CACHE_HOME``, else ``~/.cache``).

    Raises:
        InputError: there is none of these.
    """
    if own := os.environ.get("PYCLS_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has anything else ignored
        return Path(xdg) / "pycls"
    try:
        return Path.home() / ".cache" / "pycls"
    except RuntimeError:
        raise InputError("there is no home directory to keep files in: name a folder with PYCLS_CACHE") from None


def place_of(url: str, folder: Path) -> Path:
    """A file directly in ``folder`` that belongs to this URL alone.

    Its name is the URL's last part, without anything that could lead out of the folder or hide the file, and 8 digits of
    the URL's SHA-256: files of one name from two places are two files.
    """
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2], errors="replace")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", last).strip("._")[-100:]
    stem, dot, ending = plain.rpartition(".")
    stem, ending = (stem, dot + ending) if dot else (plain or "file", "")
    return folder / f"{stem or 'file'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{ending}"


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Makes the file ``path`` as a whole, or not at all where the folder cannot be written to; whether it is there.

    Args:
        path: in the cache directory.
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
