"""Photographs in folders, one folder a class: the form of ImageNet and of most sets people make themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from pycls.data.dataset import MissingSplit, Split, check_split, resolve_root, select_split
from pycls.data.images.image_files import EXTENSIONS, ImageFiles, read_classes
from pycls.data.index.file_index import list_classes, list_images
from pycls.data.index.places import path_under
from pycls.data.index.same_images import refuse_same_folders
from pycls.errors import InputError
from pycls.ranges import COUNT, NOT_NEGATIVE
from pycls.registry import DATASETS


@DATASETS.register("image_folder")
class ImageFolder(ImageFiles):
    """Images under ``train/<class>/``, ``val/<class>/`` and ``test/<class>/``; classes in the order of their names.

    Where there is no ``val``, a part of ``train`` is held out, the same in every run. A folder without ``train`` can be
    evaluated: its classes are then its own. An image in two parts or classes, by whatever link, is refused.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        folder: the folder that holds train, val and test: a path, or a name under the folder of the data sets.
        im_size: side of an image in a batch, in pixels.
        val_size: training images held out where there is no folder val, each class in its share; 0 for a tenth.
        classes: a file, a path or a name in the folder, with a class folder on each line in the order of the labels, and
            perhaps its name after it; empty for all folders in the order of their names.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        folder: str = "",
        im_size: Annotated[int, COUNT] = 224,
        val_size: Annotated[int, NOT_NEGATIVE] = 0,
        classes: str = "",
    ) -> None:
        check_split(split, "image_folder")
        base = path_under(resolve_root(root), folder, "IMAGE_FOLDER.FOLDER")
        if split == "test" and not (base / "test").is_dir():
            raise MissingSplit(f"image_folder: there is no folder {base / 'test'}; evaluate on val instead")
        names = read_classes(path_under(base, classes, "IMAGE_FOLDER.CLASSES")) if classes else _names_of_folders(base, split)
        source, has_val = base / (classes or "train"), (base / "val").is_dir()
        refuse_same_folders(base, {"train": not has_val, "val": True, "test": True})
        if split == "test" or (split == "val" and has_val):
            paths, labels = labelled_images(base, split, names, source)
        else:
            paths, labels = labelled_images(base, "train", names, source)
            if has_val and split == "trainval":
                more_paths, more_labels = labelled_images(base, "val", names, source)
                paths, labels = np.concatenate([paths, more_paths]), np.concatenate([labels, more_labels])
            if not has_val:
                ids = select_split(torch.from_numpy(labels), split, val_size or max(1, len(labels) // 10))
                if ids is not None:
                    paths, labels = paths[ids.numpy()], labels[ids.numpy()]
        super().__init__(f"image_folder {base}", base, paths, labels, list(names.values()), im_size)


def _names_of_folders(base: Path, split: str) -> dict[str, str]:
    own = "train" if split == "trainval" else split
    folders = list_classes(base / "train") or list_classes(base / own)
    if not folders:
        raise InputError(
            f"image_folder: no classes in {base / own}; put the images into {base}/train/<class>/ (and val, test "
            "likewise), or name the folder with IMAGE_FOLDER.FOLDER, DATA.ROOT or $PYCLS_DATA"
        )
    return {folder: folder for folder in folders}


def labelled_images(base: Path, part: str, names: Mapping[str, str], source: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images of one part: paths relative to ``base``, bytes ``[N]``, and labels, int64 ``[N]``.

    Args:
        base: the folder that holds the part.
        part: such as ``train``.
        names: the class folders in the order of their labels; the part must have these and no others.
        source: what they are from, for messages.
    """
    there = list_classes(base / part)
    unknown = sorted(set(there) - set(names))
    if unknown:
        raise InputError(f"{base / part} has the class {unknown[0]!r}, which {source} has not")
    absent = [name for name in names if name not in set(there)]
    if absent and there:
        raise InputError(
            f"{base / part} has no folder for the class {absent[0]!r} ({len(absent)} of {len(names)} classes are missing); "
            "make an empty one if it is meant to have no images"
        )
    if there:
        paths, labels = list_images(base, part, list(names))
    if not there or not len(paths):
        raise InputError(f"there are no images in {base / part}/<class>/ ({', '.join(EXTENSIONS)})")
    if part == "train":
        counts = np.bincount(labels, minlength=len(names))
        if not counts.all():
            empty = list(names)[int(counts.argmin())]
            raise InputError(f"{base / part / empty} has no images to train on; remove the folder, or put images there")
    return paths, labels
