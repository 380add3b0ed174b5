"""A part of a data set: the same number of images of each class, always the same ones."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pycls.data import rng
from pycls.data.dataset import SPLIT_SEED, ArrayDataset, EncodedDataset, FileDataset
from pycls.errors import InputError

SALT = 1
"""Apart from the hash that holds out val, so that the two choices are independent."""


def per_class(labels: Tensor, count: int) -> Tensor:
    """Ids, ascending, of ``count`` samples of each class (all of a smaller one), those with the smallest hashes.

    A smaller count gives a part of a larger one's, and RNG_SEED has no say: runs are comparable.
    """
    by_hash = rng.permutation(len(labels), SPLIT_SEED, SALT, rng.SPLIT)
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[rank < count].sort().values


def hold_out_per_class(labels: Tensor, split: str, count: int) -> Tensor:
    """The ids of ``train``, ``val`` or ``trainval`` where val is ``count`` images of each class, always the same ones.

    Raises :class:`InputError` if that leaves a class without training images.
    """
    val = per_class(labels, count)
    if split == "val":
        return val
    if split == "trainval":
        return torch.arange(len(labels))
    sizes = torch.bincount(labels)
    if count >= int(sizes[sizes > 0].min()):
        raise InputError(f"VAL_PER_CLASS {count} leaves a class without training images: the smallest has "
                         f"{int(sizes[sizes > 0].min())}")  # fmt: skip
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[val] = False
    return kept.nonzero()[:, 0]


def subset(dataset: ArrayDataset | FileDataset, ids: Tensor) -> ArrayDataset | FileDataset:
    """The data set of these samples, in this order; ids in it count from 0 again."""
    if isinstance(dataset, ArrayDataset):
        return dataclasses.replace(dataset, labels=dataset.labels[ids], images=dataset.images[ids])
    own = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(FileDataset)} | {"labels": dataset.labels[ids]}
    if isinstance(dataset, EncodedDataset):
        return _EncodedSubset(**own, whole=dataset, ids=ids.numpy())
    return _FileSubset(**own, whole=dataset, ids=ids.numpy())


@dataclass
class _FileSubset(FileDataset):
    whole: FileDataset
    ids: np.ndarray

    def load(self, index: int) -> np.ndarray:
        """As the whole set's."""
        return self.whole.load(int(self.ids[index]))

    def places(self) -> tuple[list[bytes], np.ndarray | None] | None:
        """As the whole set's."""
        return _places_of(self.whole, self.ids)

    def describe(self, index: int) -> str:
        """As the whole set's."""
        return self.whole.describe(int(self.ids[index]))


@dataclass
class _EncodedSubset(EncodedDataset):
    whole: EncodedDataset
    ids: np.ndarray

    def read(self, index: int) -> bytes:
        """As the whole set's."""
        return self.whole.read(int(self.ids[index]))

    def places(self) -> tuple[list[bytes], np.ndarray | None] | None:
        """As the whole set's."""
        return _places_of(self.whole, self.ids)

    def describe(self, index: int) -> str:
        """As the whole set's."""
        return self.whole.describe(int(self.ids[index]))


def _places_of(whole: FileDataset, ids: np.ndarray) -> tuple[list[bytes], np.ndarray | None] | None:
    places = whole.places()
    if places is None:
        return None
    files, starts = places
    return [files[k] for k in ids.tolist()], None if starts is None else starts[ids]
