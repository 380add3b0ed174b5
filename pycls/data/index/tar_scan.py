"""Reading through one WebDataset tar file: its images' places and its labels, and whether the file is whole."""

import json
import os
import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pycls.data.images.image_files import EXTENSIONS
from pycls.data.index.labels import LARGEST_LABEL
from pycls.errors import InputError

LABELS = ("cls", "json")
_END = bytes(2 * tarfile.BLOCKSIZE)
_CHUNK = 1 << 20


@dataclass
class _Samples:
    """What has been found, by the samples' names.

    Attributes:
        images: (start, size) in bytes.
        labels: whole numbers.
        members: the files in the tar that these are from: (name of the sample, kind) -> name of the file.
        longer: name of the sample -> an image whose extension, from the first dot on, is no image's (``a.b.jpg``).
    """

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    members: dict[tuple[str, str], str] = field(default_factory=dict)
    longer: dict[str, str] = field(default_factory=dict)


def scan(file: Path) -> dict[str, np.ndarray]:
    """Reads the headers, and the labels.

    Args:
        file: a tar file, not compressed.

    Returns:
        columns of :class:`~pycls.data.index.tar_index.TarIndex`: start, size, labels int64 ``[N]``, keys bytes ``[N]``.

    Raises:
        InputError: it is no tar file, cut off, or has samples that are not whole or are there twice.
    """
    found = _Samples()
    try:
        size = os.path.getsize(file)
        with tarfile.open(file, "r:") as tar:
            last = None
            for member in tar:
                _take(file, tar, member, size, found)
                last = member
            _check_end(file, tar.offset, last)
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        size = file.stat().st_size if file.exists() else 0
        raise InputError(f"{file} is no readable tar file (not compressed), or is cut off at byte {size:,}: {error}") from None
    _check_samples(file, found)
    places = np.array(list(found.images.values()), np.int64).reshape(-1, 2)
    return {"start": places[:, 0], "size": places[:, 1],
            "labels": np.array([found.labels[key] for key in found.images], np.int64),
            "keys": np.array([os.fsencode(key) for key in found.images], np.bytes_)}  # fmt: skip


def _take(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, size: int, found: _Samples) -> None:
    """Puts a file of the tar file, which has ``size`` bytes, with its sample."""
    end = member.offset_data + member.size
    if member.isreg() and not member.issparse() and end > size:
        raise InputError(f"{file} is cut off: it ends at byte {size:,}, and {member.name} in it goes on to byte {end:,}")
    folder, name = posixpath.split(posixpath.normpath(member.name))
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    key = posixpath.join(folder, stem)
    kind = "image" if f".{suffix}" in EXTENSIONS else "label" if suffix in LABELS else ""
    if name.startswith(".") or member.isdir():
        return
    if not kind:
        if name.lower().endswith(EXTENSIONS):
            found.longer.setdefault(key, member.name)
        return
    if not member.isreg() or member.issparse():
        raise InputError(f"{file}: {member.name} is a link or a sparse file, which has no data in the tar file; make the tar "
                         "file of plain files (tar --dereference --hard-dereference)")  # fmt: skip
    if kind == "image":
        _once(file, found, key, kind, member.name)
        found.images[key] = (member.offset_data, member.size)
        return
    content = tar.extractfile(member)
    assert content is not None
    label = _label(file, member.name, suffix, content.read())
    _once(file, found, key, suffix, member.name)
    if found.labels.setdefault(key, label) != label:
        raise InputError(f"{file}: the sample {key} has two labels, {found.labels[key]} and, in {member.name}, {label}")


def _once(file: Path, found: _Samples, key: str, kind: str, name: str) -> None:
    earlier = found.members.setdefault((key, kind), "")
    if earlier:
        raise InputError(f"the sample {key} is twice in {file}: as {earlier} and as {name}")
    found.members[key, kind] = name


def _check_end(file: Path, offset: int, last: tarfile.TarInfo | None) -> None:
    """Behind the last file of a whole tar are two blocks of zeros, and nothing but zeros; ``tarfile`` asks for neither."""
    with file.open("rb") as raw:
        raw.seek(offset)
        end = raw.read(len(_END))
        behind = f" behind {last.name}" if last is not None else ""
        if len(end) < len(_END) and not any(end):
            raise InputError(f"{file} is cut off: it ends at byte {offset + len(end):,},{behind} without the two blocks of "
                             "zeros that end a tar file")  # fmt: skip
        if end != _END:
            raise InputError(f"{file} is damaged or cut off: at byte {offset:,},{behind} is neither a file nor the end of a "
                             "tar file")  # fmt: skip
        while chunk := raw.read(_CHUNK):
            if any(chunk):
                raise InputError(f"{file} goes on behind its end, byte {offset:,}: tar files are joined by tar -A, not by cat")


def _check_samples(file: Path, found: _Samples) -> None:
    longer = next((key for key in found.longer if key not in found.images), None)
    if longer is not None:
        name = found.longer[longer]
        extension = posixpath.basename(name).partition(".")[2]
        raise InputError(f"{file}: {name} is no image of a sample: a name ends at its first dot, so this is the file "
                         f".{extension} of the sample {longer}; write the name without other dots")  # fmt: skip
    unlabelled = next((key for key in found.images if key not in found.labels), None)
    if unlabelled is not None:
        raise InputError(f"{file}: the image {unlabelled} has no label: a file {unlabelled}.cls or {unlabelled}.json goes "
                         "with it")  # fmt: skip
    if not found.images:
        raise InputError(f"{file} has no images ({', '.join(EXTENSIONS)})")
    alone = next((key for key in found.labels if key not in found.images), None)
    if alone is not None:
        raise InputError(f"{file}: the label {alone} has no image ({', '.join(EXTENSIONS)})")


def _label(file: Path, member: str, suffix: str, content: bytes) -> int:
    try:
        value = json.loads(content)
        label = value["label"] if suffix == "json" else value
        if type(label) is int and 0 <= label <= LARGEST_LABEL:
            return label
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(f"{file}: {member} holds no label: a whole number from 0 to {LARGEST_LABEL:,}"
                     + ("" if suffix == "cls" else " named label"))  # fmt: skip
