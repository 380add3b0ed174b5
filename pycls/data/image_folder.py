"""Photographs in folders, one folder a class: the form of ImageNet and of most sets people make themselves."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pycls.data.dataset import FileDataset, MissingSplit, Split, check_split, resolve_root, select_split
from pycls.errors import InputError
from pycls.registry import DATASETS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def decode(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as people see it: uint8 ``[H, W, 3]``, turned as its EXIF orientation says, of any colour mode.

    Transparency is dropped; 16-bit grey keeps its upper 8 bits. Raises what Pillow raises for a damaged file.
    """
    with Image.open(path) as file:
        image: Image.Image = file
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _list_classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: Path, classes: list[str], where: str) -> tuple[list[bytes], list[int]]:
    """Paths relative to ``folder``, and labels. Every class of the folder must be one of ``classes``."""
    unknown = sorted(set(_list_classes(folder)) - set(classes))
    if unknown:
        raise InputError(f"{folder} has the class {unknown[0]!r}, which {where} has not")
    paths, labels = [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        for file in sorted(os.listdir(folder / name)):
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                paths.append(os.fsencode(f"{name}/{file}"))
                labels.append(label)
    return paths, labels


@DATASETS.register("image_folder")
class ImageFolder(FileDataset):
    """Images under ``train/<class>/``, ``val/<class>/`` and ``test/<class>/``; classes in the order of their names.

    Where there is no ``val``, a part of ``train`` is held out, the same in every run. A folder without ``train`` can be
    evaluated: its classes are then its own.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        download: not used; there is nowhere to fetch these from.
        folder: the folder that holds train, val and test: a path, or a name under the folder of the data sets.
        im_size: side of an image in a batch, in pixels.
        val_size: training images held out where there is no folder val; 0 for a tenth.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        download: bool = True,
        folder: str = "",
        im_size: int = 224,
        val_size: int = 0,
    ) -> None:
        check_split(split, "image_folder")
        if im_size < 1:
            raise InputError(f"IMAGE_FOLDER.IM_SIZE must be 1 or more, not {im_size}")
        base = resolve_root(root) / Path(folder).expanduser()
        own = "train" if split == "trainval" else split
        classes = _list_classes(base / "train") or _list_classes(base / own)
        if not classes:
            raise InputError(
                f"image_folder: no classes in {base / own}; put the images into {base}/train/<class>/ (and val, test "
                "likewise), or name the folder with IMAGE_FOLDER.FOLDER, DATA.ROOT or $PYCLS_DATA"
            )
        paths, labels = self._find(base, split, classes, val_size)
        # One array, not a million strings: loading processes share it without copying.
        self._paths = np.array(paths)
        self._base = os.fsencode(base)
        super().__init__(
            name=f"image_folder {base}",
            labels=torch.tensor(labels, dtype=torch.int64),
            class_names=classes,
            channels=3,
            image_size=im_size,
            mean=(0.485, 0.456, 0.406),  # ImageNet's, in RGB order, as everybody writes them
            std=(0.229, 0.224, 0.225),
            crop_padding=0,
            hflip=True,
        )

    @staticmethod
    def _find(base: Path, split: Split, classes: list[str], val_size: int) -> tuple[list[bytes], list[int]]:
        """Paths relative to ``base`` and labels of a split."""

        def part(name: str) -> tuple[list[bytes], list[int]]:
            paths, labels = _list_images(base / name, classes, str(base / "train"))
            if not paths:
                raise InputError(f"image_folder: no images in {base / name}/<class>/ ({', '.join(EXTENSIONS)})")
            return [os.fsencode(name) + b"/" + path for path in paths], labels

        has_val = (base / "val").is_dir()
        if split == "test" and not (base / "test").is_dir():
            raise MissingSplit(f"image_folder: there is no folder {base / 'test'}; evaluate on val instead")
        if split == "test" or (split == "val" and has_val):
            return part(split)
        paths, labels = part("train")
        if has_val and split == "trainval":
            more_paths, more_labels = part("val")
            return paths + more_paths, labels + more_labels
        ids = None
        if not has_val:
            ids = select_split(torch.tensor(labels, dtype=torch.int64), split, val_size or max(1, len(labels) // 10))
        if ids is None:
            return paths, labels
        return [paths[i] for i in ids.tolist()], [labels[i] for i in ids.tolist()]

    def describe(self, index: int) -> str:
        """The image's file."""
        return os.fsdecode(self._base + b"/" + bytes(self._paths[index]))

    def load(self, index: int) -> np.ndarray:
        """Image ``index``: uint8 ``[H, W, 3]``."""
        return decode(self.describe(index))
