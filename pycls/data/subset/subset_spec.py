"""What of a training set is trained on, and under which labels: subset, long tail, noise, drawn once from a seed."""

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
class Protocol:
    """How a training set is made from a split; the names are the options'.

    Attributes:
        images_per_class: of the split, before anything else; 0 for all.
        profile: of the long tail: none, exponential or pareto.
        imbalance: exponential: size of the largest class over that of the smallest.
        largest: pareto: images of the first class; 0 for as many as the largest class has.
        smallest: pareto: images of the last class.
        noise: kind of label noise, or none.
        rate: probability that a label is drawn anew.
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
class Drawn:
    """What a protocol has made of a split.

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


def draw(
    dataset: ArrayDataset | FileDataset, protocol: Protocol
) -> tuple[ArrayDataset | FileDataset, Drawn | None]:
    """The training set, and what was drawn; None where the protocol leaves the split as it is.

    Noise is a matter of a sample of the split: a long tail has the noise that the whole would have.
    """
    labels, ids = dataset.labels, torch.arange(len(dataset))
    if protocol.images_per_class:
        ids = per_class(labels, protocol.images_per_class)
    if protocol.profile != "none":
        ids = ids[long_tail(labels[ids], dataset.num_classes, protocol.profile, protocol.imbalance, protocol.largest,
                            protocol.smallest, protocol.seed)]  # fmt: skip
    given = labels
    if protocol.noise != "none":
        given = noisy_labels(labels, dataset.num_classes, protocol.noise, protocol.rate, protocol.seed, protocol.pairs,
                             dataset.superclass)  # fmt: skip
    elif len(ids) == len(labels):
        return dataset, None
    part = subset(dataset, ids)
    part.labels = given[ids]
    return part, Drawn(ids, given[ids], labels[ids])
