"""Where the samples of WebDataset tar files lie: every image by its place, so that any order costs the same.

A sample is the files that share a name up to the first dot of its last part: ``n01/0001.jpg`` and ``n01/0001.cls``.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycls.data.index.tar_scan import scan
from pycls.errors import InputError
from pycls.runtime.cache import cache_dir, keep

FORM = 2
"""Of a kept index; another number where the files are read or checked otherwise, so that no older index is taken."""

LONGEST_RANGE = 1_000_000


@dataclass(frozen=True)
class TarIndex:
    """The samples of some tar files, in their order.

    Attributes:
        files: the tar files.
        file: of each sample, an index into ``files``, int64 ``[N]``.
        start: of its image in the file, in bytes, int64 ``[N]``.
        size: of its image, in bytes, int64 ``[N]``.
        labels: int64 ``[N]``.
        keys: their names, bytes ``[N]``.
    """

    files: list[Path]
    file: np.ndarray
    start: np.ndarray
    size: np.ndarray
    labels: np.ndarray
    keys: np.ndarray


def expand(pattern: str) -> list[str]:
    """``train-{000..146}.tar`` -> the names it stands for; ``a,b`` alternatives are written ``{a,b}``.

    Raises :class:`InputError` for a range that runs backwards or is too long.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1])
    if ends:
        first, last, width = int(ends[1]), int(ends[2]), len(ends[1])
        if not 0 <= last - first < LONGEST_RANGE:
            raise InputError(f"the names {pattern}: {match[0]} must count upwards, over {LONGEST_RANGE:,} numbers at most")
        middles = [str(number).zfill(width) for number in range(first, last + 1)]
    else:
        middles = match[1].split(",")
    return [name for middle in middles for name in expand(pattern[: match.start()] + middle + pattern[match.end() :])]


def read_tars(files: Sequence[Path]) -> TarIndex:
    """The index of the files of one part, kept in the cache folder while they have their sizes and times of change.

    Raises :class:`InputError` for a file that is not there, no tar, or cut off; for a sample without a label or an image;
    and for two samples of one name.
    """
    parts = [_read_kept(file) for file in files]
    together = {name: np.concatenate([part[name] for part in parts]) for name in ("start", "size", "labels", "keys")}
    index = TarIndex(list(files), np.repeat(np.arange(len(files)), [len(part["start"]) for part in parts]), **together)
    _refuse_one_name_twice(index)
    return index


def join(indexes: Sequence[TarIndex]) -> TarIndex:
    """The samples of several parts, one part after the other; names may be the same in two parts."""
    offsets = np.cumsum([0, *(len(index.files) for index in indexes)])
    names = ("start", "size", "labels", "keys")
    columns = {name: np.concatenate([getattr(index, name) for index in indexes]) for name in names}
    file = np.concatenate([index.file + offset for index, offset in zip(indexes, offsets, strict=False)])
    return TarIndex([file for index in indexes for file in index.files], file, **columns)


def _refuse_one_name_twice(index: TarIndex) -> None:
    names = index.keys.tolist()
    if len(set(names)) == len(names):
        return
    first: dict[bytes, int] = {}
    for place, name in enumerate(names):
        earlier = first.setdefault(name, place)
        if earlier != place:
            raise InputError(f"the sample {os.fsdecode(name)} is in {index.files[index.file[earlier]]} and again in "
                             f"{index.files[index.file[place]]}: the tar files of one part have each name once")  # fmt: skip


def _read_kept(file: Path) -> dict[str, np.ndarray]:
    try:
        about = os.stat(file)
    except (OSError, ValueError) as error:
        raise InputError(f"the tar file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    digest = hashlib.sha256(f"{FORM}\0{file.absolute()}\0{about.st_size}\0{about.st_mtime_ns}".encode()).hexdigest()
    kept = cache_dir() / f"tar-{digest[:32]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as data:
            return dict(data)
    except Exception:  # no such index, or a damaged one: it is made again
        found = scan(file)
        keep(kept, lambda path: _write(path, found))
        return found


def _write(path: Path, found: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]
