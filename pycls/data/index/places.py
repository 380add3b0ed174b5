"""Where a file that an option names is: a path, or an address that iopath fetches; and whether two are the same file."""

import os
import re
from collections.abc import Hashable
from pathlib import Path

from pycls.errors import InputError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters or more: C:// is a drive of Windows


def is_address(name: str) -> bool:
    """Whether it is ``scheme://...`` and no path."""
    return _ADDRESS.match(name) is not None


def local_path(top: Path, name: str, option: str) -> Path:
    """The file's path on this machine; an address goes to iopath as it is.

    Args:
        top: the folder of the data sets, which a relative path is under.
        name: a path, or an address.
        option: the option's full name, for messages.

    Raises:
        InputError: iopath is not installed, has nothing for the scheme, or cannot fetch the file.
    """
    if not is_address(name):
        return path_under(top, name, option)
    try:
        from iopath.common.file_io import PathManagerFactory
    except ImportError:
        raise InputError(f"{option}: to read {name}, install iopath") from None
    try:
        found = PathManagerFactory.get().get_local_path(name)
    except Exception as error:  # whatever a handler of iopath raises
        raise InputError(f"{option}: {name} cannot be fetched: {' '.join(str(error).split())}") from None
    if found == name:  # iopath hands back what none of its handlers is for
        scheme = name.partition("://")[0]
        raise InputError(f"{option}: {name} cannot be fetched: no handler for {scheme}:// is registered with iopath's "
                         "PathManagerFactory.get(); a file on this machine is named by its path")  # fmt: skip
    return Path(found)


def path_under(top: Path, name: str, option: str) -> Path:
    """The path of a file or folder on this machine. Raises :class:`InputError` for an address, and for an unknown home."""
    if is_address(name):
        raise InputError(f"{option} is {name}, an address; it must be a path on this machine")
    try:
        return top / Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"{option} is {name}, and there is no such home folder") from None


def identity(path: str | os.PathLike[str] | bytes) -> Hashable:
    """The same for every name of one file or folder: links of both kinds, and other spellings; also of one not there."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return os.fsencode(os.path.abspath(path))
    if not about.st_ino:  # a file system without numbers of its files
        return os.fsencode(os.path.realpath(path))
    return about.st_dev, about.st_ino
