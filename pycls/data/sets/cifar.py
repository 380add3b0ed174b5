"""CIFAR-10 and CIFAR-100 from their official files, in the python or the binary form.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; both forms are described at
https://www.cs.toronto.edu/~kriz/cifar.html. Channel statistics are those of the training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pycls.data.dataset import ArrayDataset, Split, check_split, resolve_root, select_split
from pycls.data.index.download import ensure_files
from pycls.errors import InputError
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import DATASETS
from pycls.runtime.unpickle import read_pickle

PIXELS = 3 * 32 * 32

CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_FINE = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
CIFAR100_COARSE = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """How a set lies in its files.

    A set may have several labels. ``label_keys`` are their names in the pickles, ``label_bytes`` their places at the
    start of a binary record. The first of them is the one that the held-out split is cut by, whichever of them is used.
    """

    name: str
    python_folder: str
    binary_folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_keys: tuple[str, ...]
    label_bytes: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_python(path: Path, label_keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A batch in the python form -> images uint8 ``[N, 3072]``, labels int64 ``[N, L]``, a column for each key.

    Runs nothing that the pickle contains. Raises :class:`InputError` with the file's name for anything but such a
    batch.
    """
    batch = read_pickle(path)
    if not isinstance(batch, dict):
        raise InputError(f"{path} holds no CIFAR batch, which is a dictionary, but {_kind(batch)}")
    fields: dict[str, Any] = {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in batch.items()}
    for key in ("data", *label_keys):
        if key not in fields:
            raise InputError(f"{path} holds no {key!r}, only {', '.join(sorted(fields)) or 'nothing'}")
    images = fields["data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS:
        raise InputError(f"{path}: 'data' is {_kind(images)}, not a uint8 array [N, {PIXELS}]")
    columns = []
    for key in label_keys:
        labels = fields[key].tolist() if isinstance(fields[key], np.ndarray) else fields[key]
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise InputError(f"{path}: {key!r} is no list of labels")
        if len(images) != len(labels):
            raise InputError(f"{path} has {len(images):,} images, but {len(labels):,} {key}")
        columns.append(np.array(labels, np.int64))
    return images, np.stack(columns, axis=1)


def read_binary(path: Path, label_bytes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A batch in the binary form, records of label bytes and 3,072 pixels, in :func:`read_python`'s form."""
    record = len(label_bytes) + PIXELS
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not len(data) or len(data) % record:
        raise InputError(f"{path} has {len(data):,} bytes: not a multiple of {record:,}, an image with its label")
    records = data.reshape(-1, record)
    return records[:, len(label_bytes) :], records[:, list(label_bytes)].astype(np.int64)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _read(layout: _Layout, files: Sequence[str], root: Path, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all these batches, from whichever form is complete, the python form first."""
    python = [root / layout.python_folder / file for file in files]
    binary = [root / layout.binary_folder / f"{file}.bin" for file in files]

    def missing() -> list[str]:
        if all(path.is_file() for path in binary):
            return []
        return [path.name for path in python if not path.is_file()]

    ensure_files(layout.name, missing, [python[0].parent, binary[0].parent], download, "the same with .bin")
    if all(path.is_file() for path in python):
        batches = [read_python(path, layout.label_keys) for path in python]
    else:
        batches = [read_binary(path, layout.label_bytes) for path in binary]
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def _cifar(layout: _Layout, root: str, split: Split, download: bool, val_size: int, label: int = 0) -> ArrayDataset:
    check_split(split, layout.name)
    files = layout.test if split == "test" else layout.train
    pixels, label_table = _read(layout, files, resolve_root(root), download)
    images, labels = torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(label_table)
    ids = None if split == "test" else select_split(labels[:, 0], split, val_size)
    if int(labels[:, label].max()) >= len(layout.class_names):
        largest, last = int(labels[:, label].max()), len(layout.class_names) - 1
        raise InputError(f"{layout.name} in {resolve_root(root)} has the label {largest}; its labels are 0..{last}")
    return ArrayDataset(
        name=layout.name,
        labels=(labels if ids is None else labels[ids])[:, label].contiguous(),
        class_names=layout.class_names,
        channels=3,
        image_size=32,
        mean=layout.mean,
        std=layout.std,
        crop_padding=4,
        hflip=True,
        images=images if ids is None else images[ids],
        superclass=_superclasses(labels, len(layout.class_names)) if labels.shape[1] > 1 and label == 0 else None,
    )


def _superclasses(labels: Tensor, num_classes: int) -> Tensor:
    """Of each class, int64 ``[K]``, from images that have both labels ``[N, 2]``."""
    superclass = torch.zeros(num_classes, dtype=torch.int64)
    superclass[labels[:, 0]] = labels[:, 1]
    return superclass


@DATASETS.register("cifar10")
def cifar10(root: str, split: Split, download: bool = True, val_size: Annotated[int, NOT_NEGATIVE] = 5000) -> ArrayDataset:
    """CIFAR-10: 32x32 colour images of 10 classes, 50,000 to train on (of which val is held out) and 10,000 to test.

    Args:
        root: folder of the data sets; the files lie in ``cifar-10-batches-py`` or ``cifar-10-batches-bin`` under it.
        split: train, val, trainval or test.
        download: fetch the files if they are missing.
        val_size: training images held out as the split val, each class in its share; 0 for none.
    """
    batches = tuple(f"data_batch_{number}" for number in range(1, 6))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    layout = _Layout("cifar10", *folders, batches, ("test_batch",), ("labels",), (0,), CIFAR10_NAMES, mean, std)
    return _cifar(layout, root, split, download, val_size)


@DATASETS.register("cifar100")
def cifar100(
    root: str,
    split: Split,
    download: bool = True,
    val_size: Annotated[int, NOT_NEGATIVE] = 5000,
    labels: Literal["fine", "coarse"] = "fine",
) -> ArrayDataset:
    """CIFAR-100: 32x32 colour images, 50,000 to train on (of which val is held out) and 10,000 to test.

    Args:
        root: folder of the data sets; the files lie in ``cifar-100-python`` or ``cifar-100-binary`` under it.
        split: train, val, trainval or test.
        download: fetch the files if they are missing.
        val_size: training images held out as the split val, each class in its share; 0 for none.
        labels: fine for the 100 classes, coarse for the 20 superclasses.
    """
    if labels not in ("fine", "coarse"):
        raise InputError(f"CIFAR100.LABELS must be fine or coarse, not {labels!r}")
    names = CIFAR100_FINE if labels == "fine" else CIFAR100_COARSE
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    keys, folders = ("fine_labels", "coarse_labels"), ("cifar-100-python", "cifar-100-binary")
    layout = _Layout("cifar100", *folders, ("train",), ("test",), keys, (1, 0), names, mean, std)
    return _cifar(layout, root, split, download, val_size, keys.index(f"{labels}_labels"))
