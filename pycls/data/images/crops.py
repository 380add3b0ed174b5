"""Where training and evaluation images are cropped from photographs.

The training crop is that of Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), as commonly implemented since:
an area of 8 to 100 % of the image, sides in a ratio of 3/4 to 4/3, ten tries, then the largest centred box that fits.
"""

import math

from pycls.data import rng
from pycls.data.images.crop_spec import CropSpec

AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10
EVAL_RATIO = 256 / 224  # short side before the crop over the side of the crop, where nothing else is asked for
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


def train_crop(height: int, width: int, seed: int, epoch: int, index: int, hflip: bool) -> CropSpec:
    """A random crop of an image of this height and width, in pixels, flipped half of the time if ``hflip``."""
    left, top, w, h = crop_box(height, width, seed, epoch, index)
    part = (left, top, left + w, top + h)
    return CropSpec(part, part, hflip and bool(rng.hash_word(seed, epoch, index, rng.FLIP) >> 63))


def eval_crop(height: int, width: int, size: int, resize: int) -> CropSpec:
    """The middle ``size`` x ``size`` of an image of this height and width after its short side is resized to ``resize``."""
    short = min(height, width)
    new_h, new_w = max(resize, resize * height // short), max(resize, resize * width // short)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    fx, fy = width / new_w, height / new_h
    box = (left * fx, top * fy, (left + size) * fx, (top + size) * fy)
    return CropSpec(box, (0, 0, width, height), flip=False)
