"""Finding the files of a data set, and fetching them if that is allowed.

Where files come from, and their checksums, is what torchvision publishes; torchvision is imported only when something
is missing, since that takes seconds.
"""

import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycls.errors import InputError, RunError
from pycls.runtime.download import download, has_digest
from pycls.runtime.files import exclusive


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are fetched.

    Attributes:
        mirrors: addresses of folders, tried in this order, each ending in ``/``.
        files: pairs of a file's name and its md5.
        archive: whether the files are tar archives, to be unpacked where they arrive.
    """

    mirrors: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    archive: bool = False


def _idx_source(name: str) -> Source:
    from torchvision import datasets

    official = getattr(datasets, name)
    return Source(tuple(official.mirrors), tuple(official.resources))


def _cifar_source(name: str) -> Source:
    from torchvision import datasets

    official = getattr(datasets, name)
    folder = official.url.rpartition("/")[0] + "/"
    return Source((folder,), ((official.filename, official.tgz_md5),), archive=True)


# Functions, for asking torchvision costs its import. Another mirror is one more entry, or another one in its place.
SOURCES: dict[str, Callable[[], Source]] = {
    "mnist": lambda: _idx_source("MNIST"),
    "fashion_mnist": lambda: _idx_source("FashionMNIST"),
    "cifar10": lambda: _cifar_source("CIFAR10"),
    "cifar100": lambda: _cifar_source("CIFAR100"),
}


def find_file(name: str, folders: Sequence[Path], suffixes: Sequence[str] = ("",)) -> Path | None:
    """The first file of this name (with the first suffix that fits) in the first folder that has it."""
    paths = (folder / (name + suffix) for folder in folders for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)


def ensure_files(
    name: str, missing: Callable[[], list[str]], folders: Sequence[Path], allowed: bool, variant: str
) -> None:
    """Makes sure that no file of a data set is missing, fetching the set into the first folder if need be.

    Args:
        name: of the data set, in ``SOURCES``.
        missing: says which files are missing now.
        folders: where they may lie, for the message; files are fetched into the first.
        allowed: whether what is missing may be fetched.
        variant: under which other names the files would do, for the message.

    Raises:
        InputError: files are missing and were not, or could not be, fetched; says what to put where.
    """
    if not missing():
        return
    reason = "downloading is off (DATA.DOWNLOAD)"
    if allowed:
        try:
            folders[0].parent.mkdir(parents=True, exist_ok=True)
            with exclusive(folders[0].parent / f".{name}.lock", f"another process is fetching {name}; waiting for it"):
                if missing():  # else that other process has fetched them
                    fetch(SOURCES[name](), folders[0])
            reason = "what was downloaded does not contain it"
        except Exception as error:  # whatever a network, a server or a disk can do: it ends in one line all the same
            reason = f"the download failed: {' '.join(str(error).split()) or type(error).__name__}"
    if files := missing():
        raise InputError(
            f"{name}: no {', '.join(files)} ({variant}) in {' or '.join(map(str, folders))}; {reason}; put the "
            f"official files into {folders[0]}, or name the folder of your data sets with DATA.ROOT or $PYCLS_DATA"
        )


def fetch(source: Source, folder: Path) -> None:
    """Fetches every file of ``source`` that is missing into ``folder``: from the first mirror that gives it intact.

    An archive is unpacked: what it contains lands beside ``folder``, which it contains itself.
    Raises an exception with the reasons of all mirrors.
    """
    target = folder.parent if source.archive else folder
    for file, md5 in source.files:
        place = target / file
        _fetch_file(source.mirrors, place, md5)
        if source.archive:
            with tempfile.TemporaryDirectory(dir=target, prefix=".unpacked-") as workplace:
                with tarfile.open(place) as archive:
                    archive.extractall(workplace, filter="data")
                _move_into(Path(workplace), target)
            place.unlink()


def _fetch_file(mirrors: Sequence[str], place: Path, md5: str) -> None:
    problems: list[str] = []
    for mirror in mirrors:
        try:
            download(mirror + place.name, place, has_digest("md5", md5))
            return
        except (InputError, RunError) as error:
            problems.append(str(error))
    raise RunError("; ".join(problems))


def _move_into(workplace: Path, target: Path) -> None:
    """Moves each file under ``workplace`` to the same place under ``target``, replacing what is there."""
    for path in sorted(workplace.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(workplace)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
