"""Data sets of image files: what folders and lists of them have in common."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pycls.data.dataset import EncodedDataset
from pycls.data.index.text_files import read_text
from pycls.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # in RGB order, as commonly given
IMAGENET_STD = (0.229, 0.224, 0.225)

CHECKED_FILES = 10_000
"""Of a longer list so many files, evenly spread, are looked for before training starts."""


class ImageFiles(EncodedDataset):
    """Images, each in its own file.

    Args:
        name: what messages call the set.
        base: the folder that the paths are relative to.
        paths: bytes ``[N]``. One array, not a million strings: worker processes share it without copying.
        labels: int64 ``[N]``.
        class_names: the K names.
        im_size: side of an image in a batch, in pixels.
    """

    def __init__(
        self, name: str, base: Path, paths: np.ndarray, labels: np.ndarray, class_names: Sequence[str], im_size: int
    ) -> None:
        self._base, self._paths = os.fsencode(base), paths
        super().__init__(
            name=name,
            labels=torch.from_numpy(labels),
            class_names=class_names,
            channels=3,
            image_size=im_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            crop_padding=0,
            hflip=True,
        )

    def describe(self, index: int) -> str:
        """The image's file."""
        return os.fsdecode(os.path.join(self._base, bytes(self._paths[index])))

    def places(self) -> tuple[list[bytes], None]:
        """The images' files."""
        return [os.path.join(self._base, path) for path in self._paths.tolist()], None

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``."""
        with open(os.path.join(self._base, bytes(self._paths[index])), "rb") as file:
            return file.read()


def read_classes(path: Path) -> dict[str, str]:
    """A file with a class on each line, its folder and perhaps its name: folder -> ``folder name``, in the file's order.

    ``LOC_synset_mapping.txt`` and ``synset_words.txt`` of ImageNet are such files. Raises :class:`InputError`.
    """
    lines = [line.strip() for line in read_text(path, f"the file of classes {path}").splitlines() if line.strip()]
    names = {line.split()[0]: " ".join(line.split()) for line in lines}
    if len(names) < len(lines):
        folders = [line.split()[0] for line in lines]
        twice = next(folder for k, folder in enumerate(folders) if folder in folders[:k])
        raise InputError(f"the file of classes {path} names {twice} twice")
    if not names:
        raise InputError(f"the file of classes {path} is empty")
    return names


def check_files(base: Path, paths: np.ndarray, source: str, folder_option: str) -> None:
    """Raises :class:`InputError` where files of a list are not there: all are looked for, of a long list a part."""
    looked_at = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), CHECKED_FILES)).astype(np.int64))
    folder = os.fsencode(base)
    missing = [i for i in looked_at.tolist() if not os.path.isfile(os.path.join(folder, bytes(paths[i])))]
    if missing:
        share = "all" if len(missing) == len(looked_at) else f"{len(missing):,}"
        first = os.fsdecode(os.path.join(folder, bytes(paths[missing[0]])))
        raise InputError(
            f"{source}: there is no file {first}; {share} of {len(looked_at):,} files looked for are missing: "
            f"the paths of a list are relative to {folder_option}, which is relative to DATA.ROOT"
        )
