"""Crops of images that are tensors, resized on the device: the pixels are Pillow's within a grey level."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pycls.data.images.crop_spec import CropSpec

SHRINKS_MOST = 32
"""Pixels of the image for one of the square, a side: PyTorch's filter on a GPU takes up to 94."""
LONGEST = 8
"""Sides of the square that the whole resized clip may be long: a thin line in a margin is no reason to resize a strip."""

TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations whose stored rows are columns of the upright image."""
MIRRORED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""EXIF orientation -> dimensions of ``[C, H, W]`` to turn about, after that."""


class _Window(NamedTuple):
    """Where the square lies along one axis of the resized clip.

    Attributes:
        before: pixels of the resized clip before it.
        length: pixels of the resized clip.
        step: pixels of the image for one of these.
    """

    before: int
    length: int
    step: float


def _window(low: float, high: float, length: int, size: int) -> _Window:
    """For a box of ``low`` to ``high`` that becomes ``size`` pixels, in a clip of ``length``.

    PyTorch resizes whole tensors only. That is no loss: both kinds of crops (``crops.py``) are whole pixels of their clip
    resized, in training all of them, in evaluation those in the middle.
    """
    step = (high - low) / size
    window = _Window(round(low / step), round(length / step), step)
    assert abs(window.before - low / step) < 0.01 and abs(window.length - length / step) < 0.01, (low, high, length, size)
    return window


def _windows(crop: CropSpec, size: int) -> tuple[_Window, _Window]:
    """Across and down."""
    left, top, right, bottom = crop.clip
    across = _window(crop.box[0] - left, crop.box[2] - left, right - left, size)
    return across, _window(crop.box[1] - top, crop.box[3] - top, bottom - top, size)


def fits(crop: CropSpec, size: int) -> bool:
    """Whether :func:`crop_tensor` makes this crop without undue memory."""
    return all(window.step <= SHRINKS_MOST and window.length <= LONGEST * size for window in _windows(crop, size))


def crop_tensor(image: Tensor, crop: CropSpec, size: int) -> Tensor:
    """The crop of an upright image that :func:`fits`: uint8 ``[C, H, W]`` -> float32 ``[C, size, size]``, not rounded.

    Bilinear, antialiased.
    """
    across, down = _windows(crop, size)
    left, top, right, bottom = crop.clip
    clip = image[None, :, top:bottom, left:right].float()
    resized = F.interpolate(clip, (down.length, across.length), mode="bilinear", align_corners=False, antialias=True)
    square = resized[0, :, down.before : down.before + size, across.before : across.before + size]
    return square.flip(2) if crop.flip else square


def upright(image: Tensor, orientation: int) -> Tensor:
    """An image as it is stored, ``[C, H, W]``, turned as its EXIF orientation (1..8) says."""
    if orientation in TRANSPOSED:
        image = image.transpose(1, 2)
    return image.flip(MIRRORED[orientation]) if orientation in MIRRORED else image
