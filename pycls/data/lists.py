"""Reading lists of images: ``path label`` a line, or CSV."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycls.errors import InputError


@dataclass(frozen=True)
class ImageList:
    """A list that has been read.

    Attributes:
        source: the file.
        paths: of the images, bytes ``[N]``.
        labels: as written, ``[N]``: int64, or str where they are names.
    """

    source: Path
    paths: np.ndarray
    labels: np.ndarray

    @property
    def named(self) -> bool:
        """Whether the labels are names."""
        return self.labels.dtype.kind == "U"

    def line_of(self, index: int) -> int:
        """The line of the file that entry ``index`` is on (of CSV with line breaks in a field: about)."""
        first = 2 if self.source.suffix.lower() in SEPARATORS else 1
        return index + first


SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_list(source: Path, path_column: str = "path", label_column: str = "label") -> ImageList:
    """A list file: CSV (or TSV) with a header if it is called so, else lines of a path, white space, and a label.

    Args:
        source: the file.
        path_column: header of the paths in CSV.
        label_column: header of the labels in CSV, numbers or names.

    Raises:
        InputError: with the file and line.
    """
    separator = SEPARATORS.get(source.suffix.lower())
    try:
        with source.open(encoding="utf-8", newline="") as file:
            if separator is None:
                rows = [line.rsplit(maxsplit=1) for line in file.read().splitlines()]
            else:
                rows = _read_csv(source, csv.reader(file, delimiter=separator), (path_column, label_column))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the list {source} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    while rows and not rows[-1]:
        rows.pop()
    first = 1 if separator is None else 2
    if not rows:
        raise InputError(f"the list {source} is empty")
    for number, row in enumerate(rows, first):
        if len(row) != 2:
            raise InputError(f"{source}:{number}: expected a path and a label")
    names = [row[1] for row in rows]
    paths = np.array([os.fsencode(row[0].strip()) for row in rows])
    return ImageList(source, paths, _labels(source, names, first, may_be_names=separator is not None))


def _read_csv(source: Path, reader: Iterator[list[str]], columns: tuple[str, str]) -> list[list[str]]:
    header: list[str] = next(reader, [])
    for column in columns:
        if column not in header:
            raise InputError(f"{source}:1: there is no column {column!r}, only {', '.join(header) or 'nothing'}; name the "
                             "columns with PATH_COLUMN and LABEL_COLUMN")  # fmt: skip
    places = [header.index(column) for column in columns]
    return [[row[place] for place in places] if len(row) > max(places) else row[:1] for row in reader]


def _labels(source: Path, texts: Sequence[str], first: int, may_be_names: bool) -> np.ndarray:
    try:
        labels = np.array(texts).astype(np.int64)
    except (ValueError, OverflowError):
        if may_be_names:
            return np.array(texts)
        number = next(i for i, text in enumerate(texts, first) if not text.lstrip("-").isdecimal())
        raise InputError(f"{source}:{number}: the label {texts[number - first]!r} is no whole number") from None
    if labels.min() < 0:
        place = int(labels.argmin())
        raise InputError(f"{source}:{first + place}: the label {labels[place]} is negative; labels count from 0")
    return labels


def class_names(lists: ImageList) -> list[str]:
    """Names of the classes of a training list: its labels where these are names, sorted; else what the folders tell.

    Where each class has a folder of its own, the folder's name, or its path, is the name of the class; else its number is.
    """
    if lists.named:
        return sorted(set(lists.labels.tolist()))
    count = int(lists.labels.max()) + 1
    order = np.unique(lists.labels, return_index=True)[1]
    folders = np.array([path.rpartition(b"/")[0] for path in lists.paths.tolist()])
    for shorten in (lambda folder: folder.rpartition(b"/")[2], lambda folder: folder):
        short = [shorten(folder) for folder in folders[order].tolist()]
        if len(set(short)) == count and all(short):
            label_of = {name: label for label, name in enumerate(short)}
            distinct, where = np.unique(folders, return_inverse=True)
            numbers = np.array([label_of.get(shorten(folder), -1) for folder in distinct.tolist()])
            if np.array_equal(numbers[where], lists.labels):
                return [os.fsdecode(name) for name in short]
    return [str(label) for label in range(count)]


def numbered(lists: ImageList, names: Sequence[str], training: str) -> np.ndarray:
    """The labels as numbers, int64 ``[N]``. Raises :class:`InputError` for one that ``training`` has no class for."""
    if lists.named:
        label_of = {name: label for label, name in enumerate(names)}
        labels = np.array([label_of.get(name, len(names)) for name in lists.labels.tolist()], np.int64)
    else:
        labels = lists.labels
    wrong = int((labels >= len(names)).argmax())
    if labels[wrong] >= len(names):
        raise InputError(f"{lists.source}:{lists.line_of(wrong)}: the label {str(lists.labels[wrong])!r} is none of the "
                         f"{len(names)} classes of {training}")  # fmt: skip
    return labels
