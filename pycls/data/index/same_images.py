"""Images that two parts of a data set share, or that one part has twice, would make every figure wrong: they are refused."""

import bisect
import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycls.data.images.image_files import EXTENSIONS
from pycls.data.index.file_index import list_classes
from pycls.data.index.places import identity
from pycls.errors import InputError

FOLLOWED_FILES = 10_000
"""Of so many images together the files themselves are compared, whatever links lead to them; of more, their paths, with the
links of folders followed: to ask for each of a million files would take minutes on a network."""


@dataclass(frozen=True)
class SplitImages:
    """Images of one part, and how messages call them.

    Attributes:
        name: the list, or the folder.
        base: the folder that the paths are relative to.
        paths: bytes ``[N]``.
        labels: ``[N]``: numbers or names.
        once: whether an image may be in it only once, because it is tested on or a part of it is held out.
        where: index -> where the image is named: a line of a list, or its file.
    """

    name: str
    base: Path
    paths: np.ndarray
    labels: np.ndarray
    once: bool
    where: Callable[[int], str]


def refuse_same_images(parts: Sequence[SplitImages]) -> None:
    """Raises :class:`InputError` where one image is in two parts, or twice in one with two labels or where it must not be."""
    followed = sum(len(part.paths) for part in parts) <= FOLLOWED_FILES
    seen: dict[Hashable, int] = {}  # the images' numbers, all parts counted on
    starts = np.cumsum([0, *(len(part.paths) for part in parts)]).tolist()
    shared: dict[tuple[str, str], list[tuple[SplitImages, int, SplitImages, int]]] = {}
    for part, start in zip(parts, starts, strict=False):
        for number, key in enumerate(_keys(part, followed), start):
            earlier = seen.setdefault(key, number)
            if start <= earlier < number:
                _refuse_twice(part, earlier - start, number - start)
            elif earlier < start:
                place = bisect.bisect_right(starts, earlier) - 1
                pair = (parts[place], earlier - starts[place], part, number - start)
                shared.setdefault((parts[place].name, part.name), []).append(pair)
    for found in shared.values():
        other, earlier, part, index = found[0]
        as_there = "" if part.paths[index] == other.paths[earlier] else f", there {_shown(other, earlier)}"
        raise InputError(f"{part.name} and {other.name} share {len(found):,} images, such as {_shown(part, index)}{as_there}")


def _refuse_twice(part: SplitImages, one: int, other: int) -> None:
    first, second = str(part.labels[one]), str(part.labels[other])
    if first != second:
        raise InputError(f"{part.where(one)} and {part.where(other)} give the same image, {_shown(part, other)}, two labels, "
                         f"{first!r} and {second!r}")  # fmt: skip
    if part.once:
        raise InputError(f"{part.where(one)} and {part.where(other)} are the same image, {_shown(part, other)}: a part that is "
                         "tested on, or of which a share is held out as val, has each image once")  # fmt: skip


def _shown(part: SplitImages, index: int) -> str:
    return os.fsdecode(bytes(part.paths[index]))


def _keys(part: SplitImages, followed: bool) -> Iterator[Hashable]:
    base = os.fsencode(part.base)
    real: dict[bytes, bytes] = {}
    for path in part.paths.tolist():
        if followed:
            yield identity(os.path.join(base, path))
            continue
        folder, slash, name = path.rpartition(b"/")
        if folder not in real:
            real[folder] = os.path.join(os.path.realpath(os.path.join(base, folder + slash)), b"")
        yield real[folder] + name


def refuse_same_folders(base: Path, parts: Mapping[str, bool]) -> None:
    """The same for folders of classes: looks at class folders, and at the files in them where they are not too many.

    Args:
        base: the folder of the parts.
        parts: ``train``, ``val``, ``test``, those that there may be -> whether an image may be in it only once.
    """
    first: dict[Hashable, Path] = {}
    for part in parts:
        for name in list_classes(base / part):
            folder = base / part / name
            earlier = first.setdefault(identity(folder), folder)
            if earlier != folder:
                raise InputError(f"{earlier} and {folder} are the same folder: its images would have two labels, or be tested "
                                 "on and trained on or chosen by")  # fmt: skip
    files = list(itertools.islice(_files(base, parts), FOLLOWED_FILES + 1))
    if len(files) > FOLLOWED_FILES:
        return
    found = []
    for part, once in parts.items():
        own = [(name, file) for place, name, file in files if place == part]
        paths = np.array([os.fsencode(f"{part}/{name}/{file}") for name, file in own], np.bytes_)
        names = np.array([name for name, _ in own], np.str_)
        found.append(SplitImages(str(base / part), base, paths, names, once, _place(base, paths)))
    refuse_same_images(found)


def _files(base: Path, parts: Mapping[str, bool]) -> Iterator[tuple[str, str, str]]:
    for part in parts:
        for name in list_classes(base / part):
            try:
                files = sorted(os.listdir(base / part / name))
            except OSError:
                continue  # loading this part reports it
            yield from ((part, name, file) for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith("."))


def _place(base: Path, paths: np.ndarray) -> Callable[[int], str]:
    return lambda index: os.path.join(str(base), os.fsdecode(bytes(paths[index])))
