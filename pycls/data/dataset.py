"""What a data set is, how a held-out part is cut from it, and where the files of all sets lie."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from pycls import class_names
from pycls.data import rng
from pycls.data.images.decoding import decode
from pycls.data.index.places import path_under
from pycls.errors import InputError

AnyDataset = TypeVar("AnyDataset", bound="Dataset")
Split = Literal["train", "val", "trainval", "test"]

SHOWN = 5
"""Classes that a message names before it counts the rest."""

# The held-out parts are a function of the data set alone, never of RNG_SEED: validation numbers of any two runs
# compare.
SPLIT_SEED = 2718281828


class MissingSplit(InputError):
    """The data set is there but has no such split (a folder of images without ``test``)."""


@dataclass
class Dataset:
    """The facts that every data set states.

    Attributes:
        name: what messages call it.
        labels: int64 ``[N]`` on the CPU, each in 0..K-1.
        class_names: the K names.
        channels: 1 or 3.
        image_size: side of an image in pixels, as a batch has it unless the loader is told otherwise.
        mean: of pixel values in 0..1, one a channel: what normalisation subtracts.
        std: their standard deviation, one a channel: what it divides by.
        crop_padding: pixels of zero padding for the random crop that suits this set; 0 for no crop.
        hflip: whether a left-right flip leaves the class as it is.
        superclass: of each class, int64 ``[K]``; None where the set has none.
    """

    name: str
    labels: Tensor
    class_names: Sequence[str]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    hflip: bool
    superclass: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise ValueError(f"{self.name}: labels must be int64 [N], not {found}")
        if not len(self.labels):
            raise InputError(f"{self.name}: this split has no images")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.name}: mean and std need one value for each of the {self.channels} channels")
        check_num_classes(self.labels, self.num_classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)


@dataclass
class ArrayDataset(Dataset):
    """A data set that fits in memory.

    Attributes:
        images: uint8 ``[N, C, H, W]`` on the CPU, H = W = ``image_size``.
    """

    images: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = (len(self.labels), self.channels, self.image_size, self.image_size)
        if self.images.dtype != torch.uint8 or self.images.shape != expected:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise InputError(f"{self.name}: images must be uint8 {list(expected)}, not {found}")


@dataclass
class FileDataset(Dataset, ABC):
    """A data set whose images stay in files until they are needed. It is pickled to the worker processes."""

    @abstractmethod
    def load(self, index: int) -> np.ndarray:
        """Image ``index``, decoded: uint8 ``[H, W, C]`` of any size. Raises what the decoder raises."""

    def places(self) -> tuple[list[bytes], np.ndarray | None] | None:
        """The file of each image, and where in it the image starts (int64 ``[N]``; None where each has its own file); None for
        a set that does not tell."""
        return None

    def describe(self, index: int) -> str:
        """How an error message names image ``index``: its file, where there is one."""
        return f"image {index} of {self.name}"


@dataclass
class EncodedDataset(FileDataset, ABC):
    """A :class:`FileDataset` of encoded images (JPEG, PNG, ...), 3 channels: of these only what a crop needs is decoded."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file of image ``index`` as it is. Raises ``OSError``."""

    def load(self, index: int) -> np.ndarray:
        """Image ``index``, decoded whole."""
        return decode(self.read(index))


def held_out(labels: Tensor, size: int, salt: int = 0) -> tuple[Tensor, Tensor]:
    """Cuts ``size`` samples out of a set, each class in its share, always the same ones.

    A class gives its share of ``size`` rounded down; the classes with the largest remainders give one more (the largest
    remainder method). Within a class those with the smallest hashes go.

    Args:
        labels: int64 ``[N]``.
        size: samples to cut out, 1..N-1.
        salt: a further number of the hash, to cut a second time independently.

    Returns:
        ids of what is kept and of what is cut out, both int64 and ascending.
    """
    n = len(labels)
    if not 0 < size < n:
        raise InputError(f"VAL_SIZE must leave both training and validation images: 1..{n - 1} of {n}, not {size}")
    counts = torch.bincount(labels)
    quota = counts * size // n
    remainders = counts * size % n
    quota[remainders.argsort(stable=True, descending=True)[: size - int(quota.sum())]] += 1
    by_hash = rng.permutation(n, SPLIT_SEED, salt, rng.SPLIT)
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    rank_in_class = torch.arange(n) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    out = torch.zeros(n, dtype=torch.bool)
    out[by_class] = rank_in_class < quota[labels[by_class]]
    return (~out).nonzero()[:, 0], out.nonzero()[:, 0]


def select_split(labels: Tensor, split: str, val_size: int) -> Tensor | None:
    """The ids of ``split`` within the official training part; None for all of them (``trainval``)."""
    if split == "trainval" or (split == "train" and val_size == 0):
        return None
    train, val = held_out(labels, val_size)
    return val if split == "val" else train


def check_split(split: str, name: str) -> None:
    """Raises :class:`InputError` unless ``split`` is one of the four."""
    if split not in ("train", "val", "trainval", "test"):
        raise InputError(f"{name} has no split {split!r}; there are: train, val, trainval, test")


def remap_labels(dataset: AnyDataset, names: Sequence[str], whose: str, by_position: bool = False) -> tuple[AnyDataset, str]:
    """The data set, its labels numbered as the classes ``names`` are, which may be more than its own. It is changed.

    Args:
        dataset: to be tested on.
        names: of a model's classes, in the order of its outputs.
        whose: what names them, for messages.
        by_position: whether class k is taken to be the model's class k, whatever the two are called.

    Returns:
        The data set, and what a line of the log should say of its classes; empty if they are the same in the same order.

    Raises:
        InputError: it has a class that the model has not.
    """
    own = list(dataset.class_names)
    if own == list(names):
        return dataset, ""
    if by_position:
        if len(own) > len(names):
            raise InputError(f"TEST.MATCH_CLASSES position: {dataset.name} has {len(own)} classes, {whose} only {len(names)}")
        note = f"its {len(own)} classes are taken by position ({own[0]!r} for {names[0]!r}), as TEST.MATCH_CLASSES asks for"
    else:
        places = _places_of_all(dataset, names, whose)
        dataset.labels = torch.where(dataset.labels < 0, dataset.labels, torch.tensor(places)[dataset.labels])
        note = f"its {len(own)} classes are found by their names among the {len(names)} of {whose}"
        if len(own) == len(names):
            note = f"its {len(own)} classes are those of {whose} in another order, and are matched by their names"
    dataset.class_names, dataset.superclass = list(names), None
    return dataset, note


def _places_of_all(dataset: Dataset, names: Sequence[str], whose: str) -> list[int]:
    own = dataset.class_names
    places = class_names.places(own, names)
    unknown = [name for name, place in zip(own, places, strict=True) if place is None]
    hint = f"{class_names.near_miss(unknown, names)}; TEST.MATCH_CLASSES position takes class k to be class k instead"
    if len(unknown) == len(own):
        raise InputError(f"{dataset.name}: none of its {len(own)} classes ({class_names.shown(own)}) is one of the "
                         f"{len(names)} of {whose} ({class_names.shown(names)}){hint}")  # fmt: skip
    if unknown:
        raise InputError(f"{dataset.name} has the class {unknown[0]!r}, which is not one of the {len(names)} classes of "
                         f"{whose}, or not the only one of that name{hint}")  # fmt: skip
    return [place for place in places if place is not None]


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Images of each class, int64 ``[K]``. Raises :class:`InputError` for a label that is K or more."""
    check_num_classes(labels, num_classes, "the data set")
    return torch.bincount(labels[labels >= 0], minlength=num_classes)


def absent_classes(counts: Tensor, names: Sequence[str]) -> str:
    """A warning of one line that names the classes without training images; empty where there are none.

    Args:
        counts: training images of each class, int64 ``[K]``.
        names: of the first classes, or of all.
    """
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if not absent:
        return ""
    shown = [str(k) if k >= len(names) or names[k] == str(k) else f"{k} ({names[k]})" for k in absent[:SHOWN]]
    more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
    return (f"{len(absent):,} of {len(counts):,} classes {'has' if len(absent) == 1 else 'have'} no training images: "
            f"{', '.join(shown)}{more}; labels count from 0")  # fmt: skip


def check_num_classes(labels: Tensor, num_classes: int, name: str) -> None:
    """Raises :class:`InputError` where ``num_classes`` is too small for the labels, saying what would do."""
    largest = int(labels.max()) if len(labels) else -1
    if largest >= num_classes:
        raise InputError(
            f"NUM_CLASSES is {num_classes}, but {name} has labels up to {largest}: it must be at least {largest + 1}"
        )
    if len(labels) and int(labels.min()) < -1:
        raise InputError(f"{name} has the label {int(labels.min())}; labels are 0..{num_classes - 1}")


def resolve_root(root: str | os.PathLike[str] = "") -> Path:
    """The folder that holds the data sets: ``root`` if given, else ``$PYCLS_DATA``, else ``./data``.

    Raises :class:`InputError` for an address such as s3://....
    """
    return path_under(Path(), os.fspath(root) or os.environ.get("PYCLS_DATA") or "data", "DATA.ROOT or $PYCLS_DATA")
