"""The subset of a training set that is trained on, and its labels: images a class, long tail, label noise, all by one seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from pycls.data.dataset import ArrayDataset, FileDataset
from pycls.data.subset.label_noise import noisy_labels
from pycls.data.subset.long_tail import long_tail
from pycls.data.subset.per_class import per_class, subset


@dataclass(frozen=True)
class SubsetSpec:
    """How a training set is made from a split; the names are the options'.

    Attributes:
        images_per_class: of the split, before anything else; 0 for all.
        profile: of the long tail: none, exponential or pareto.
        imbalance: exponential: size of the largest class over that of the smallest.
        largest: pareto: images of the first class; 0 for as many as the largest class has.
        smallest: pareto: images of the last class.
        noise: kind of label noise, or none.
        rate: probability that a label is drawn again at random.
        pairs: ``(from, to)`` classes of the noise ``pairs``.
        seed: of tail and noise.
    """

    images_per_class: int = 0
    profile: str = "none"
    imbalance: float = 100.0
    largest: int = 0
    smallest: int = 5
    noise: str = "none"
    rate: float = 0.0
    pairs: Sequence[Sequence[int]] = ()
    seed: int = 0


@dataclass(frozen=True)
class Subset:
    """The subset of a split that a spec selects, and its labels.

    Attributes:
        ids: the samples of the split that are trained on, int64 ``[N]``.
        labels: the labels they are trained under, int64 ``[N]``.
        true_labels: the split's own labels of them, int64 ``[N]``.
    """

    ids: Tensor
    labels: Tensor
    true_labels: Tensor

    @property
    def sha256(self) -> str:
        """Of ids and labels, as 64-bit little-endian numbers: the same on every machine."""
        words = torch.cat([self.ids, self.labels]).numpy().astype("<i8")
        return hashlib.sha256(words.tobytes()).hexdigest()

    def describe(self) -> str:
        """A line for the log: how many, how unevenly, how many wrong."""
        counts = torch.bincount(self.true_labels)
        sizes = counts[counts > 0]
        wrong = int((self.labels != self.true_labels).sum())
        return (f"training set: {len(self.ids):,} images, {int(sizes.max()):,} to {int(sizes.min()):,} a class, "
                f"{wrong:,} wrong labels ({100 * wrong / len(self.ids):.2f} %), sha256 {self.sha256[:16]}")  # fmt: skip

    def write(self, file: BinaryIO) -> None:
        """Saves the three as a NumPy archive."""
        np.savez(file, ids=self.ids.numpy(), labels=self.labels.numpy(), true_labels=self.true_labels.numpy())


def make_subset(
    dataset: ArrayDataset | FileDataset, spec: SubsetSpec
) -> tuple[ArrayDataset | FileDataset, Subset | None]:
    """The training set, and the subset of the split that it is; None where the spec leaves the split as it is.

    Noise depends on the sample alone: in a long tail a sample has the noise that it has in the whole split.
    """
    labels, ids = dataset.labels, torch.arange(len(dataset))
    if spec.images_per_class:
        ids = per_class(labels, spec.images_per_class)
    if spec.profile != "none":
        ids = ids[long_tail(labels[ids], dataset.num_classes, spec.profile, spec.imbalance, spec.largest,
                            spec.smallest, spec.seed)]  # fmt: skip
    given = labels
    if spec.noise != "none":
        given = noisy_labels(labels, dataset.num_classes, spec.noise, spec.rate, spec.seed, spec.pairs,
                             dataset.superclass)  # fmt: skip
    elif len(ids) == len(labels):
        return dataset, None
    part = subset(dataset, ids)
    part.labels = given[ids]
    return part, Subset(ids, given[ids], labels[ids])
