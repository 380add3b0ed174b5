"""The compiled JPEG decoder: built once a machine from ``jpeg_decoder.c``, where there are a C compiler and libjpeg's headers.

Nothing depends on it: without it, and for any file that it leaves alone, Pillow does the same. It is checked against Pillow
before it is used.
"""

import ctypes
import functools
import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.runtime.native import Unfit, library

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("jpeg_decoder.c")
DONE = 0


class JpegDecoder:
    """The functions of the compiled library.

    Args:
        compiled: the library.
    """

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._shape, self._decode = compiled.pycls_jpeg_shape, compiled.pycls_jpeg_crop
        self._shape.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
        self._decode.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32,
                              ctypes.c_int32, ctypes.c_void_p]  # fmt: skip

    def shape(self, data: bytes) -> tuple[int, int] | None:
        """Height and width of a JPEG; None for a file that this library leaves to Pillow.

        It does so with whatever is not surely decoded to Pillow's pixels. What it decodes is a JPEG of 8 bits, baseline or
        progressive, grey or YCbCr in 4:4:4, 4:2:2 or 4:2:0, that is stored upright, ends as it should, gives no cause for a
        warning, and is not larger than Pillow allows.
        """
        found = (ctypes.c_int32 * 2)()
        if self._shape(data, len(data), found) != DONE:
            return None
        most = Image.MAX_IMAGE_PIXELS
        return None if most is not None and found[0] * found[1] > 2 * most else (found[1], found[0])

    def decode(self, data: bytes, crop: CropSpec, size: int) -> np.ndarray | None:
        """The crop of a JPEG that has a :meth:`shape`: uint8 ``[size, size, 3]``; None where it turns out to be damaged or not
        whole, and is left to Pillow.

        The decoded pixels are Pillow's; the resized ones are Pillow's within two grey levels, for it rounds twice.
        """
        out = np.empty((size, size, 3), np.uint8)
        box, clip = (ctypes.c_double * 4)(*crop.box), (ctypes.c_int32 * 4)(*crop.clip)
        ended = self._decode(data, len(data), box, clip, size, crop.flip, out.ctypes.data)
        return out if ended == DONE else None


@functools.cache
def jpeg_decoder() -> JpegDecoder | None:
    """The library of this machine, compiled if it has not been; None, with a warning that says why, where that cannot be."""
    try:
        return _load()
    except Unfit as error:
        logger.warning("JPEGs are decoded by Pillow, about half as fast: %s", error)
        return None


def _load() -> JpegDecoder:
    try:
        decoder = JpegDecoder(library(SOURCE, link_flags=["-ljpeg", "-lm"]))
    except Unfit as error:
        raise Unfit(f"{error}; are libjpeg-turbo's headers (libjpeg-turbo8-dev, libjpeg62-turbo-dev) installed?") from error
    _check(decoder)
    return decoder


def _check(decoder: JpegDecoder) -> None:
    """Compiled for another libjpeg than it meets, it would leave every file to Pillow, and another version may have other
    pixels: a part of each kind of file that it decodes must be Pillow's bit for bit, and a resized part nearly."""
    ramp = np.arange(48 * 64 * 3, dtype=np.float64).reshape(48, 64, 3) / (48 * 64 * 3) * 255
    edges = np.where((np.indices((48, 64)).sum(axis=0) % 11 < 4)[:, :, None], ramp[::-1, ::-1], ramp)
    colours = Image.fromarray(edges.astype(np.uint8))
    part = CropSpec((9.0, 11.0, 42.0, 44.0), (9, 11, 42, 44), flip=False)
    resized = CropSpec((5.0, 3.5, 50.0, 40.25), (0, 0, 64, 48), flip=True)
    for picture, subsampling in ((colours, 0), (colours, 1), (colours, 2), (colours.convert("L"), 0)):
        for progressive in (False, True):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
            with Image.open(file) as saved:
                whole = np.asarray(saved.convert("RGB"))
            for crop, size, most in ((part, 33, 0), (resized, 16, 2)):
                ours = decoder.decode(file.getvalue(), crop, size) if decoder.shape(file.getvalue()) == (48, 64) else None
                if ours is None:
                    raise Unfit("the compiled decoder does not decode a good file")
                if int(np.abs(ours.astype(int) - crop_array(whole, crop, size)).max()) > most:
                    raise Unfit("the compiled decoder does not give Pillow's pixels")
