"""A square cut out of an image: where it lies, and Pillow's way of making it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Cut:
    """What of an image becomes a square of pixels. All lengths are in pixels of the image, upright.

    Attributes:
        box: left, top, right, bottom of the part that fills the square.
        clip: the same of the part that may be looked at: the antialiasing filter reaches beyond the box, but not beyond this.
        flip: whether the square is then turned left to right.
    """

    box: tuple[float, float, float, float]
    clip: tuple[int, int, int, int]
    flip: bool


def cut_array(image: np.ndarray, cut: Cut, size: int) -> np.ndarray:
    """The cut of a decoded image, uint8 ``[H, W, C]`` -> uint8 ``[size, size, C]``: bilinear, antialiased."""
    left, top, right, bottom = cut.clip
    image = image[top:bottom, left:right]
    picture = Image.fromarray(np.ascontiguousarray(image if image.shape[2] == 3 else image[:, :, 0]))
    box = (cut.box[0] - left, cut.box[1] - top, cut.box[2] - left, cut.box[3] - top)
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))
    resized = resized if resized.ndim == 3 else resized[:, :, None]
    return resized[:, ::-1] if cut.flip else resized
