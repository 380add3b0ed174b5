"""Cutting square training and evaluation images out of decoded photographs, with Pillow, in the loading processes.

The training crop is that of Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), as everybody draws it since:
an area of 8 to 100 % of the image, sides in a ratio of 3/4 to 4/3, ten tries, then the largest centred box that fits.
"""

import math

import numpy as np
from PIL import Image

from pycls.data import rng

AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10
EVAL_RATIO = 256 / 224  # short side before the cut over the side of the cut, where nothing else is asked for
_BOX_STREAMS = 100  # the first of the streams of this file: four for each try


def crop_box(height: int, width: int, seed: int, epoch: int, index: int) -> tuple[int, int, int, int]:
    """The training crop of one image: ``(left, top, width, height)`` in whole pixels, within the image.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        seed: of the run.
        epoch: 0-based.
        index: the sample's position in its split.
    """
    for attempt in range(TRIES):
        u = [rng.uniform_one(seed, epoch, index, _BOX_STREAMS + 4 * attempt + part) for part in range(4)]
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * u[0])
        ratio = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * u[1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1)), w, h
    w = max(1, min(width, round(height * 4 / 3)))
    h = max(1, min(height, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


def train_crop(image: np.ndarray, size: int, seed: int, epoch: int, index: int, hflip: bool) -> np.ndarray:
    """A random crop, resized, and flipped half of the time: uint8 ``[H, W, C]`` -> uint8 ``[size, size, C]``."""
    left, top, w, h = crop_box(image.shape[0], image.shape[1], seed, epoch, index)
    crop = _resize(image[top : top + h, left : left + w], size, size)
    return crop[:, ::-1] if hflip and rng.hash_word(seed, epoch, index, rng.FLIP) >> 63 else crop


def eval_crop(image: np.ndarray, size: int, resize: int) -> np.ndarray:
    """The centre: uint8 ``[H, W, C]``, its short side resized to ``resize`` -> uint8 ``[size, size, C]``.

    Only what the cut shows is resized, which is faster than resizing all and differs from it by at most a grey level or
    so.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    new_h, new_w = max(resize, resize * height // short), max(resize, resize * width // short)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    fx, fy = width / new_w, height / new_h
    return _resize(image, size, size, (left * fx, top * fy, (left + size) * fx, (top + size) * fy))


def _resize(
    image: np.ndarray, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Bilinear with antialiasing, of the part of the image in ``box`` (left, top, right, bottom)."""
    picture = Image.fromarray(np.ascontiguousarray(image if image.shape[2] == 3 else image[:, :, 0]))
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))
    return resized if resized.ndim == 3 else resized[:, :, None]
