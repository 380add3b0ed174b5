"""Finding the files of a data set, and fetching them if that is allowed.

Where files come from, and their checksums, is what torchvision publishes; torchvision is imported only when something
is missing, since that takes seconds. A file is fetched into a folder beside its place, checked, and moved there whole,
so that neither a lost connection nor a second process leaves half a file under a good name.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycls.errors import InputError

TIMEOUT = 30.0  # seconds without an answer from a server


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are fetched.

    Attributes:
        mirrors: addresses of folders, tried in this order, each ending in ``/``.
        files: pairs of a file's name and its md5.
        archive: whether the files are archives, to be unpacked where they arrive.
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
    name: str, missing: Callable[[], list[str]], folders: Sequence[Path], download: bool, variant: str
) -> None:
    """Makes sure that no file of a data set is missing, fetching the set into the first folder if need be.

    Args:
        name: of the data set, in ``SOURCES``.
        missing: says which files are missing now.
        folders: where they may lie, for the message; files are fetched into the first.
        download: whether what is missing may be fetched.
        variant: under which other names the files would do, for the message.

    Raises:
        InputError: files are missing and were not, or could not be, fetched; says what to put where.
    """
    if not missing():
        return
    reason = "downloading is off (DATA.DOWNLOAD)"
    if download:
        try:
            fetch(SOURCES[name](), folders[0])
            reason = "what was downloaded does not contain it"
        except Exception as error:  # whatever a network, a server or a disk can do: it ends in one line all the same
            reason = f"the download failed: {_one_line(error)}"
    if files := missing():
        raise InputError(
            f"{name}: no {', '.join(files)} ({variant}) in {' or '.join(map(str, folders))}; {reason}; put the "
            f"official files into {folders[0]}, or name the folder of your data sets with DATA.ROOT or $PYCLS_DATA"
        )


def fetch(source: Source, folder: Path) -> None:
    """Fetches every file of ``source`` that is missing into ``folder``: from the first mirror that gives it intact.

    An archive is unpacked: what it contains lands beside ``folder``, which it contains itself.
    Raises ``RuntimeError`` or ``OSError`` with the reason of the last mirror.
    """
    target = folder.parent if source.archive else folder
    target.mkdir(parents=True, exist_ok=True)
    for file, md5 in source.files:
        if source.archive or not (target / file).exists():
            with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as workplace, _patience():
                _fetch_file(source, file, md5, Path(workplace))
                _move_into(Path(workplace), target)


def _fetch_file(source: Source, file: str, md5: str, workplace: Path) -> None:
    from torchvision.datasets.utils import download_url, extract_archive

    problems: list[str] = []
    for mirror in source.mirrors:
        try:
            download_url(mirror + file, str(workplace), file, md5)
        except (OSError, RuntimeError) as error:
            problems.append(f"{mirror + file}: {_one_line(error)}")
            (workplace / file).unlink(missing_ok=True)
            continue
        if source.archive:
            extract_archive(str(workplace / file), str(workplace), remove_finished=True)
        return
    raise RuntimeError("; ".join(problems))


def _move_into(workplace: Path, target: Path) -> None:
    """Moves each file under ``workplace`` to the same place under ``target``, replacing what is there."""
    for path in sorted(workplace.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(workplace)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """A time limit on every silent connection: without one a network that swallows packets would hang the run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
