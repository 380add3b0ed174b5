"""A square cut out of an image that is a tensor: the device's way of making it, Pillow's pixels within a grey level."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pycls.data.images.crop_spec import Cut

SHRINKS_MOST = 32
"""Pixels of the image for one of the square, a side: PyTorch's filter on a GPU has room for 94."""
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

    PyTorch resizes whole tensors only. That is no loss: both kinds of cuts (``crops.py``) are whole pixels of their clip
    resized, in training all of them, in evaluation those in the middle.
    """
    step = (high - low) / size
    window = _Window(round(low / step), round(length / step), step)
    assert abs(window.before - low / step) < 0.01 and abs(window.length - length / step) < 0.01, (low, high, length, size)
    return window


def _windows(cut: Cut, size: int) -> tuple[_Window, _Window]:
    """Across and down."""
    left, top, right, bottom = cut.clip
    across = _window(cut.box[0] - left, cut.box[2] - left, right - left, size)
    return across, _window(cut.box[1] - top, cut.box[3] - top, bottom - top, size)


def fits(cut: Cut, size: int) -> bool:
    """Whether :func:`cut_tensor` makes this cut without undue memory."""
    return all(window.step <= SHRINKS_MOST and window.length <= LONGEST * size for window in _windows(cut, size))


def cut_tensor(image: Tensor, cut: Cut, size: int) -> Tensor:
    """The cut of an upright image that :func:`fits`: uint8 ``[C, H, W]`` -> float32 ``[C, size, size]``, not rounded.

    Bilinear, antialiased.
    """
    across, down = _windows(cut, size)
    left, top, right, bottom = cut.clip
    clip = image[None, :, top:bottom, left:right].float()
    resized = F.interpolate(clip, (down.length, across.length), mode="bilinear", align_corners=False, antialias=True)
    square = resized[0, :, down.before : down.before + size, across.before : across.before + size]
    return square.flip(2) if cut.flip else square


def upright(image: Tensor, orientation: int) -> Tensor:
    """An image as it is stored, ``[C, H, W]``, turned as its EXIF orientation (1..8) says."""
    if orientation in TRANSPOSED:
        image = image.transpose(1, 2)
    return image.flip(MIRRORED[orientation]) if orientation in MIRRORED else image
