"""The image files below class folders, and a list of them that is kept: a second start reads no folder of a large tree."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pycls.data.images.image_files import EXTENSIONS
from pycls.errors import InputError
from pycls.runtime.cache import cache_dir, keep

KEPT_FROM = 10_000
"""A tree of fewer images is quicker listed than looked up."""

_SETTLED_NS = 2 * 10**9
"""A folder changed more recently than this may change again without its time of change showing it."""


def list_classes(folder: Path) -> list[str]:
    """The folders in it, sorted, but for hidden ones; none where it is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_images(base: Path, part: str, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The images ``part/<class>/<file>`` below ``base``, class by class, files sorted.

    The list of a large tree is kept in the cache folder, and is good as long as no class folder has changed.

    Args:
        base: the folder.
        part: a folder in it, such as ``train``.
        classes: the folders in that; all exist.

    Returns:
        paths relative to ``base``, bytes ``[N]``, and indices into ``classes``, int64 ``[N]``.
    """
    began = time.time_ns()
    folders = [os.path.join(base, part, name) for name in classes]
    try:
        changed = np.array([os.stat(folder).st_mtime_ns for folder in folders], np.int64)
        digest = hashlib.sha256(b"\0".join(os.fsencode(os.path.abspath(folder)) for folder in folders)).hexdigest()
        kept = cache_dir() / f"files-{digest[:32]}.npz"
        found = _look_up(kept, changed)
        if found is not None:
            return found
        paths: list[bytes] = []
        counts = []
        for name, folder in zip(classes, folders, strict=True):
            files = sorted(f for f in os.listdir(folder) if f.lower().endswith(EXTENSIONS) and not f.startswith("."))
            paths += [os.fsencode(f"{part}/{name}/{file}") for file in files]
            counts.append(len(files))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
    labels = np.repeat(np.arange(len(classes)), counts)
    listed = np.array(paths, dtype=np.bytes_)
    if len(paths) >= KEPT_FROM and changed.max() < began - _SETTLED_NS:
        keep(kept, lambda path: _write(path, listed, labels, changed))
    return listed, labels


def _write(path: Path, paths: np.ndarray, labels: np.ndarray, changed: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, paths=paths, labels=labels, changed=changed)


def _look_up(kept: Path, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(kept, allow_pickle=False) as data:
            if not np.array_equal(data["changed"], changed):
                return None
            return data["paths"], data["labels"]
    except Exception:  # no such list, or a damaged one: it is made again
        return None
