"""Whether two data sets have images in common: by the files that these are in, however their folders and names are written."""

import os
from collections.abc import Iterator

import numpy as np

from pycls.data.dataset import ArrayDataset, Dataset, FileDataset

LOOKED_AT = 20_000
"""Of more files than these the folders are followed to where they lie, and of the files a part, evenly spread."""

Place = tuple[object, object, int]


def shared_images(trained: Dataset, tested: Dataset) -> tuple[int, str] | None:
    """(How many images of ``tested`` are also in ``trained``, what one of them is called); None for none.

    Files are the same through links of any kind. Of sets in memory, which have a few images twice now and then, one is taken
    for another if they share more than half of the images.
    """
    if isinstance(trained, ArrayDataset) and isinstance(tested, ArrayDataset):
        known = {hash(row.tobytes()) for row in trained.images.numpy()}
        same = [k for k, row in enumerate(tested.images.numpy()) if hash(row.tobytes()) in known]
        return (len(same), f"image {same[0]}") if 2 * len(same) > len(tested) else None
    if not (isinstance(trained, FileDataset) and isinstance(tested, FileDataset)):
        return None
    ours, theirs = trained.places(), tested.places()
    if ours is None or theirs is None:
        return None
    follow = len({*ours[0], *theirs[0]}) <= LOOKED_AT
    wanted = set(_identities(*theirs, follow))
    found = wanted.intersection(_identities(*ours, follow))
    same = [k for k, place in enumerate(_identities(*theirs, follow)) if place in found]
    return (len(same), tested.describe(same[0])) if same else None


def _identities(files: list[bytes], starts: np.ndarray | None, follow: bool) -> Iterator[Place]:
    """What tells each image from others, in order.

    Args:
        files: of each image.
        starts: of each image, its place in the file; None for files of one image.
        follow: whether each file is looked for; else those of a sample that are links are followed.
    """
    known: dict[bytes, tuple[object, object]] = {}
    step = max(1, len(files) // LOOKED_AT)
    for k, file in enumerate(files):
        folder, _, name = file.rpartition(b"/")
        if follow:
            one = known.get(file) or known.setdefault(file, _inode(file))
        elif k % step == 0 and os.path.islink(file):
            real, _, name = os.path.realpath(file).rpartition(b"/")
            one = (real, name)
        else:
            one = (known.get(folder) or known.setdefault(folder, (os.path.realpath(folder), None)))[0], name
        yield *one, 0 if starts is None else int(starts[k])


def _inode(file: bytes) -> tuple[object, object]:
    try:
        found = os.stat(file)
    except OSError:
        return file, None  # it counts among the unreadable ones later
    return found.st_dev, found.st_ino
