"""A square crop of an image: where it lies, and how Pillow makes it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class CropSpec:
    """What of an image becomes a square of pixels. All lengths are in pixels of the image, upright.

    Attributes:
        box: left, top, right, bottom of the part that fills the square.
        clip: the same of the part that may be looked at: the antialiasing filter reaches beyond the box, but not beyond this.
        flip: whether the square is then turned left to right.
    """

    box: tuple[float, float, float, float]
    clip: tuple[int, int, int, int]
    flip: bool


def crop_array(image: np.ndarray, crop: CropSpec, size: int) -> np.ndarray:
    """The crop of a decoded image, uint8 ``[H, W, C]`` -> uint8 ``[size, size, C]``: bilinear, antialiased."""
    left, top, right, bottom = crop.clip
    image = image[top:bottom, left:right]
    picture = Image.fromarray(np.ascontiguousarray(image if image.shape[2] == 3 else image[:, :, 0]))
    box = (crop.box[0] - left, crop.box[1] - top, crop.box[2] - left, crop.box[3] - top)
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))
    resized = resized if resized.ndim == 3 else resized[:, :, None]
    return resized[:, ::-1] if crop.flip else resized
