"""Where the samples of WebDataset tar files lie: every image by its place, so that any order costs the same.

A sample is the files that share a name up to the first dot of its last part: ``n01/0001.jpg`` and ``n01/0001.cls``.
"""

import hashlib
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycls.data.image_files import EXTENSIONS
from pycls.errors import InputError
from pycls.runtime.cache import cache_dir, keep

BLOCK = 512


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
    """``train-{000..146}.tar`` -> the names it stands for; ``a,b`` alternatives are written ``{a,b}``."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        width = len(ends[1])
        middles = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        middles = match[1].split(",")
    return [name for middle in middles for name in expand(pattern[: match.start()] + middle + pattern[match.end() :])]


def read_tars(files: list[Path]) -> TarIndex:
    """The index of these files, kept in the cache folder while they have their sizes and times of change.

    Raises :class:`InputError` for a file that is not there or no tar, and for a sample without a label.
    """
    parts = [_read_kept(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if not len(part["start"]):
            raise InputError(f"{file} has no images ({', '.join(EXTENSIONS)})")
    together = {name: np.concatenate([part[name] for part in parts]) for name in ("start", "size", "labels", "keys")}
    return TarIndex(files, np.repeat(np.arange(len(files)), [len(part["start"]) for part in parts]), **together)


def _read_kept(file: Path) -> dict[str, np.ndarray]:
    try:
        about = os.stat(file)
    except OSError as error:
        raise InputError(f"the tar file {file} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(f"{file.absolute()}\0{about.st_size}\0{about.st_mtime_ns}".encode()).hexdigest()
    kept = cache_dir() / f"tar-{digest[:32]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as data:
            return dict(data)
    except Exception:  # no such index, or a damaged one: it is made anew
        found = _scan(file)
        keep(kept, lambda path: _write(path, found))
        return found


def _write(path: Path, found: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]


def _scan(file: Path) -> dict[str, np.ndarray]:
    """Reads the headers, and the labels."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile() or name.startswith("."):
                    continue
                if f".{suffix.lower()}" in EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif suffix in ("cls", "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = _label(file, member.name, suffix, content.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{file} is no readable tar file (not compressed): {error}") from None
    missing = next((key for key in images if key not in labels), None)
    if missing is not None:
        raise InputError(f"{file}: the image {missing} has no label: a file {missing}.cls or {missing}.json goes with it")
    places = np.array(list(images.values()), np.int64).reshape(-1, 2)
    return {"start": places[:, 0], "size": places[:, 1], "labels": np.array([labels[key] for key in images], np.int64),
            "keys": np.array([os.fsencode(key) for key in images], np.bytes_)}  # fmt: skip


def _label(file: Path, member: str, suffix: str, content: bytes) -> int:
    try:
        value = json.loads(content)
        label = value["label"] if suffix == "json" else value
        if type(label) is int and label >= 0:
            return label
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{file}: {member} holds no label: a whole number from 0 on" + ("" if suffix == "cls" else " named label"))
