"""Reading lists of images: ``path label`` a line, or CSV."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycls.data.index.labels import read_labels
from pycls.data.index.text_files import read_text
from pycls.errors import InputError

SEPARATORS = {".csv": ",;\t", ".tsv": "\t,;"}
"""Ending of a file of columns -> what may separate them, the likeliest first; which one does, the header shows."""

Row = tuple[int, str, str]
"""The line it begins on, a path and a label."""


@dataclass(frozen=True)
class ImageList:
    """A list that has been read.

    Attributes:
        source: the file.
        paths: of the images, bytes ``[N]``.
        labels: as written, ``[N]``: int64, or str where they are names.
        lines: of the file, that the entries are on, int64 ``[N]``.
        option: the full name of the option that names the file, for messages; may be empty.
    """

    source: Path
    paths: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    option: str = ""

    @property
    def named(self) -> bool:
        """Whether the labels are names."""
        return self.labels.dtype.kind == "U"

    @property
    def name(self) -> str:
        """What messages call the list: its option and file."""
        return _called(self.source, self.option)

    def where(self, index: int) -> str:
        """The option, file and line of entry ``index``."""
        return f"{self.name}:{self.lines[index]}"


def read_list(
    source: Path, path_column: str = "path", label_column: str = "label", option: str = "", named: bool = False
) -> ImageList:
    """A list file: CSV (or TSV) with a header if it is called so, else lines of a path, white space, and a label.

    Empty lines, and lines that begin with ``#`` and a blank, are left out.

    Args:
        source: the file, UTF-8.
        path_column: header of the paths in CSV; capitals and blanks around it do not matter.
        label_column: header of the labels in CSV, numbers or names.
        option: the full name of the option that names the file, for messages.
        named: take numbers in CSV for names too, because the labels of the training list are names.

    Raises:
        InputError: with the option, file and line.
    """
    name = _called(source, option)
    text = read_text(source, f"{option}: the list {source}" if option else f"the list {source}")
    columns = source.suffix.lower() in SEPARATORS
    rows = list(_read_csv(source, text, name, (path_column, label_column), option) if columns else _read_lines(text, name))
    if not rows:
        raise InputError(f"{name}: the list is empty")
    lines = np.array([row[0] for row in rows], np.int64)
    unnamed = next((line for line, path, _ in rows if not path), None)
    if unnamed is not None:
        raise InputError(f"{name}:{unnamed}: the path is empty")
    labels = read_labels([row[2] for row in rows], lambda index: f"{name}:{lines[index]}", columns, named)
    found = ImageList(source, np.array([os.fsencode(row[1]) for row in rows]), labels, lines, option)
    _refuse_two_labels(found)
    return found


def _called(source: Path, option: str) -> str:
    return f"{option}: {source}" if option else str(source)


def _read_lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        row = line.rsplit(maxsplit=1)
        if not row or ("#" in line and _is_no_entry(line)):
            continue
        if len(row) != 2:
            hint = "; a list with commas, and a header, is called .csv" if "," in line else ""
            raise InputError(f"{name}:{number}: expected a path and a label{hint}")
        yield number, row[0].strip(), row[1]


def _is_no_entry(line: str) -> bool:
    return line.split(maxsplit=1)[:1] in ([], ["#"])


def _read_csv(source: Path, text: str, name: str, columns: tuple[str, str], option: str) -> Iterator[Row]:
    lines = io.StringIO(text, newline="").readlines()
    above = next((k for k, line in enumerate(lines) if not _is_no_entry(line)), 0)
    separator, header, places = _header(source, lines[above] if lines else "", f"{name}:{above + 1}", columns, option)
    end = above + 1
    reader = csv.reader(iter(lines[end:]), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        begin = end + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{name}:{begin}: this is no CSV: {error}") from None
        end = above + 1 + reader.line_num
        if not "".join(row).strip() or row[0].split(maxsplit=1)[:1] == ["#"]:
            continue
        if len(row) <= max(places):
            raise InputError(f"{name}:{begin}: expected a path and a label: there are {len(row)} of {len(header)} columns")
        if any(cell.strip() for cell in row[len(header) :]):
            raise InputError(f"{name}:{begin}: there are {len(row)} columns where the header has {len(header)}; a field that "
                             f"holds {separator!r} is put in quotes")  # fmt: skip
        path, label = (row[place].strip() for place in places)
        if (_plain(path), _plain(label)) == tuple(_plain(header[place]) for place in places):
            raise InputError(f"{name}:{begin}: this is the header once more")
        yield begin, path, label


def _header(source: Path, line: str, where: str, columns: tuple[str, str], option: str) -> tuple[str, list[str], list[int]]:
    """The separator, the header's fields, and the places of the columns."""
    if _plain(columns[0]) == _plain(columns[1]):
        raise InputError(f"{where}: paths and labels are both to be in the column {columns[0]!r}")
    separators = SEPARATORS[source.suffix.lower()]
    headers = {s: next(csv.reader([line.rstrip("\r\n")], delimiter=s, skipinitialspace=True), []) for s in separators}
    found = {s: [[k for k, field in enumerate(header) if _plain(field) == _plain(column)] for column in columns]
             for s, header in headers.items()}  # fmt: skip
    separator = max(separators, key=lambda s: (sum(map(bool, found[s])), len(headers[s])))  # the first of equals
    header, section = headers[separator], option.rpartition(".")[0]
    for column, places in zip(columns, found[separator], strict=True):
        if not places:
            there = ", ".join(field.strip() for field in header) or "nothing"
            raise InputError(f"{where}: there is no column {column!r}, only {there}; name the columns with "
                             f"{section + '.' if section else ''}PATH_COLUMN and LABEL_COLUMN")  # fmt: skip
        if len(places) > 1:
            raise InputError(f"{where}: there are {len(places)} columns {column!r}")
    return separator, header, [places[0] for places in found[separator]]


def _plain(text: str) -> str:
    return text.strip().casefold()


def _refuse_two_labels(found: ImageList) -> None:
    first: dict[bytes, int] = {}
    for index, path in enumerate(found.paths.tolist()):
        plain = os.path.normpath(path) if b"./" in path or b"//" in path else path
        earlier = first.setdefault(plain, index)
        if earlier != index and found.labels[earlier] != found.labels[index]:
            raise InputError(two_labels(found, earlier, index))


def two_labels(found: ImageList, one: int, other: int) -> str:
    """The message where two entries of a list are the same image with different labels."""
    return (f"{found.where(one)} and line {found.lines[other]} give the image {os.fsdecode(found.paths[other])} two labels, "
            f"{str(found.labels[one])!r} and {str(found.labels[other])!r}")  # fmt: skip


def class_names(lists: ImageList) -> list[str]:
    """Names of the classes of a training list: its labels where these are names, sorted; else what the folders tell.

    Where each class has its own folder, the folder's name, or its path, is the name of the class; else its number is.
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
        raise InputError(f"{lists.where(wrong)}: the label {str(lists.labels[wrong])!r} is none of the "
                         f"{len(names)} classes of {training}")  # fmt: skip
    return labels
