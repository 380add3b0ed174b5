"""What a loader yields, and the settings that its sources of pixels share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pycls.data.augment.augmentation import Augmentation
from pycls.data.sources.unreadable import Unreadable

Request = tuple[int, int]
"""(epoch, draw): all that a sample is a function of, besides the seed."""


class Batch(NamedTuple):
    """One process's part of a global batch.

    Attributes:
        images: float32 ``[n, C, S, S]``, normalised, on the device.
        labels: int64 ``[n]``, on the device.
        ids: int64 ``[n]``, on the CPU (a log or a message may name them without waiting for the device): the samples'
            positions in their split.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Settings:
    """How batches are made from a data set.

    Attributes:
        train: whether samples are augmented.
        device: where batches go.
        channels_last: memory order of the images.
        im_size: side S of an image in a batch, in pixels.
        im_sizes: in training, ``(epoch, side)`` pairs, ascending: from that epoch on another side.
        resize: in evaluation, the (short) side that an image is resized to before its centre is cut out; 0 for none.
        crop_padding: in training, pixels of zeros around an image in memory before the random crop; 0 for no crop.
        hflip: in training, whether half of the images are flipped left to right.
        augmentation: in training, what else is done.
        seed: of the augmentation.
        num_workers: worker processes for images in files; 0 to load in this process.
        pin_memory: page-locked memory for the copy to a GPU.
        native: whether the compiled JPEG decoder may be used.
        decode_on_device: whether the device decodes JPEGs in files, not the worker processes.
        unreadable: what becomes of images that cannot be decoded; None to end with the first.
    """

    train: bool
    device: torch.device
    channels_last: bool
    im_size: int
    resize: int = 0
    crop_padding: int = 0
    hflip: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    im_sizes: Sequence[Sequence[int]] = ()
    seed: int = 0
    num_workers: int = 0
    pin_memory: bool = False
    native: bool = True
    decode_on_device: bool = False
    unreadable: Unreadable | None = None

    def size_at(self, epoch: int) -> int:
        """Side of the images of an epoch."""
        return next((side for first, side in reversed(self.im_sizes) if first <= epoch), self.im_size)
