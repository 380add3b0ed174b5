"""Image files as people see them: whole, or no more of them than a crop needs."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.data.images.jpeg_decoder import JpegDecoder
from pycls.data.images.modes import eight_bit

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
    """An image file: uint8 ``[H, W, 3]``, upright, of any format and mode that ``modes.eight_bit`` takes.

    Raises what that raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, of large images: a line a file, in every worker process
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(upright(file).convert("RGB"))


def upright(file: Image.Image) -> Image.Image:
    """An opened file -> its image, of mode L or RGB, turned as its EXIF or XMP says.

    Pillow turns a TIFF when it loads it, and takes the orientation out of its EXIF then: it is therefore read afterwards.
    """
    image = eight_bit(file)
    turn = TURNS.get(orientation_of(file))
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """What EXIF says, or XMP where it says nothing; 1, upright, where neither does or EXIF cannot be read.

    Of a file that is not a TIFF before and after it is loaded the same.
    """
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and is no reason to lose the image
        return 1


def decode_crop(data: bytes, place: Callable[[int, int], CropSpec], size: int, decoder: JpegDecoder | None) -> np.ndarray:
    """A crop of an image file: uint8 ``[size, size, 3]``.

    Args:
        data: the file.
        place: height and width of the image -> the crop.
        size: side of the result, in pixels.
        decoder: decodes of a JPEG what the crop needs; None for Pillow, which gives the same within a grey level on average.
    """
    if decoder is not None and (shape := decoder.shape(data)) is not None:
        square = decoder.decode(data, place(*shape), size)
        if square is not None:
            return square
    image = decode(data)
    return crop_array(image, place(*image.shape[:2]), size)
