"""Image files as people see them: whole, or no more of them than a cut needs."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from pycls.data.cut import Cut, cut_array
from pycls.data.native import JpegCutter

EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored image upright."""


def decode(data: bytes) -> np.ndarray:
    """An image file: uint8 ``[H, W, 3]``, turned as its EXIF orientation says, of any format and mode that Pillow reads.

    Transparency is dropped; 16-bit grey keeps its upper 8 bits. Raises what Pillow raises for a damaged file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, of large images: a line a file, in every loading process
        with Image.open(io.BytesIO(data)) as file:
            return _upright_rgb(file)


def turned(image: Image.Image, original: Image.Image) -> Image.Image:
    """The image, upright by the EXIF orientation of the one it was made from."""
    turn = TURNS.get(orientation_of(original))
    return image if turn is None else image.transpose(turn)


def _upright_rgb(image: Image.Image) -> np.ndarray:
    image = turned(image, image)
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def orientation_of(image: Image.Image) -> int:
    """What EXIF says; 1, upright, where it says nothing or cannot be read."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and is no reason to lose the image
        return 1


def decode_cut(data: bytes, place: Callable[[int, int], Cut], size: int, cutter: JpegCutter | None) -> np.ndarray:
    """A cut of an image file: uint8 ``[size, size, 3]``.

    Args:
        data: the file.
        place: height and width of the image -> the cut.
        size: side of the result, in pixels.
        cutter: decodes of a JPEG what the cut needs; None for Pillow, which gives the same within a grey level on average.
    """
    if cutter is not None and (shape := cutter.shape(data)) is not None:
        square = cutter.cut(data, place(*shape), size)
        if square is not None:
            return square
    image = decode(data)
    return cut_array(image, place(*image.shape[:2]), size)
