"""MNIST and Fashion-MNIST from their official IDX files, gzipped or not.

MNIST: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
Fashion-MNIST: Xiao, Rasul and Vollgraf, arXiv:1708.07747. The format: http://yann.lecun.com/exdb/mnist.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from pycls.data.dataset import ArrayDataset, Split, check_split, resolve_root, select_split
from pycls.data.index.download import ensure_files, find_file
from pycls.errors import InputError
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import DATASETS

FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SUFFIXES = ("", ".gz")
_UINT8 = 0x08  # IDX's code of the type of an element


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of bytes, gzipped if its name ends in ``.gz``: uint8 array of ``ndim`` dimensions.

    Raises :class:`InputError` with the file's name if it is damaged, of another kind, too short or too long.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); put the official file in its place") from error
    header = 4 + 4 * ndim
    magic, expected = data[:4].hex(), f"0000{_UINT8:02x}{ndim:02x}"
    if magic != expected:
        found = magic or "nothing"
        raise InputError(f"{path} is no IDX file of bytes in {ndim} dimensions: starts with {found}, not {expected}")
    shape = [int.from_bytes(data[start : start + 4], "big") for start in range(4, header, 4)]
    size = header + math.prod(shape)
    if len(data) != size:
        raise InputError(f"{path} has {len(data):,} bytes (unpacked), but its header {shape} asks for {size:,}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _idx_dataset(
    name: str, folder: str, root: str, split: Split, download: bool, val_size: int, class_names: tuple[str, ...],
    mean: float, std: float, crop_padding: int, hflip: bool,
) -> ArrayDataset:  # fmt: skip
    check_split(split, name)
    base = resolve_root(root)
    folders = [base / folder / "raw", base / folder, base / name / "raw", base / name]
    part = "t10k" if split == "test" else "train"
    wanted = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]

    def missing() -> list[str]:
        return [file for file in wanted if find_file(file, folders, SUFFIXES) is None]

    ensure_files(name, missing, folders, download, "plain or .gz")
    image_path, label_path = (find_file(file, folders, SUFFIXES) for file in wanted)
    assert image_path is not None and label_path is not None
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise InputError(f"{image_path} has {len(images):,} images, but {label_path} {len(labels):,} labels")
    if images.shape[1] != images.shape[2]:
        raise InputError(f"{image_path} has images of {images.shape[1]}x{images.shape[2]} pixels: they must be square")
    if len(labels) and labels.max() > 9:
        raise InputError(f"{label_path} has the label {labels.max()}; {name} has the classes 0..9")
    all_images, all_labels = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).to(torch.int64)
    ids = None if split == "test" else select_split(all_labels, split, val_size)
    return ArrayDataset(
        name=name,
        labels=all_labels if ids is None else all_labels[ids],
        class_names=class_names,
        channels=1,
        image_size=images.shape[1],
        mean=(mean,),
        std=(std,),
        crop_padding=crop_padding,
        hflip=hflip,
        images=all_images if ids is None else all_images[ids],
    )


@DATASETS.register("mnist")
def mnist(root: str, split: Split, download: bool = True, val_size: Annotated[int, NOT_NEGATIVE] = 5000) -> ArrayDataset:
    """MNIST: 28x28 grey digits, 60,000 to train on (of which val is held out) and 10,000 to test.

    Args:
        root: folder of the data sets; the files lie in ``MNIST/raw``, ``MNIST``, ``mnist/raw`` or ``mnist`` under it.
        split: train, val, trainval or test.
        download: fetch the files if they are missing.
        val_size: training images held out as the split val, each class in its share; 0 for none.
    """
    names = tuple(str(digit) for digit in range(10))
    return _idx_dataset("mnist", "MNIST", root, split, download, val_size, names, 0.1307, 0.3081, 0, False)


@DATASETS.register("fashion_mnist")
def fashion_mnist(
    root: str, split: Split, download: bool = True, val_size: Annotated[int, NOT_NEGATIVE] = 5000
) -> ArrayDataset:
    """Fashion-MNIST: 28x28 grey pictures of clothes, 60,000 to train on (of which val is held out), 10,000 to test.

    Args:
        root: folder of the data sets; the files lie in ``FashionMNIST/raw``, ``FashionMNIST``, ``fashion_mnist/raw`` or
            ``fashion_mnist`` under it.
        split: train, val, trainval or test.
        download: fetch the files if they are missing.
        val_size: training images held out as the split val, each class in its share; 0 for none.
    """
    folder, names = "FashionMNIST", FASHION_NAMES
    return _idx_dataset("fashion_mnist", folder, root, split, download, val_size, names, 0.2860, 0.3530, 2, True)
