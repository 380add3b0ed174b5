"""What a loader yields, and the settings that its sources of pixels share."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pycls.data.unreadable import Unreadable


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
        resize: in evaluation, the (short) side that an image is resized to before its centre is cut out; 0 for none.
        crop_padding: in training, pixels of zeros around an image in memory before the random crop; 0 for no crop.
        hflip: in training, whether half of the images are flipped left to right.
        seed: of the augmentation.
        num_workers: loading processes for images in files; 0 to load in this one.
        pin_memory: page-locked memory for the copy to a GPU.
        native: whether the compiled JPEG cutter may be used.
        unreadable: what becomes of images that cannot be decoded; None to end with the first.
    """

    train: bool
    device: torch.device
    channels_last: bool
    im_size: int
    resize: int = 0
    crop_padding: int = 0
    hflip: bool = False
    seed: int = 0
    num_workers: int = 0
    pin_memory: bool = False
    native: bool = True
    unreadable: Unreadable | None = None
