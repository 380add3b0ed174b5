"""The compiled JPEG cutter: built once a machine from ``jpeg_cut.c``, where there are a C compiler and libjpeg's headers.

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

from pycls.data.cut import Cut, cut_array
from pycls.runtime.native import Unfit, library

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("jpeg_cut.c")
DONE, NOT_HERE = 0, 1
_MESSAGE = 256


class JpegCutter:
    """The functions of the compiled library.

    Args:
        compiled: the library.
    """

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._shape, self._cut = compiled.pycls_jpeg_shape, compiled.pycls_jpeg_cut
        self._shape.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p]
        self._cut.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32,
                              ctypes.c_int32, ctypes.c_double, ctypes.c_void_p, ctypes.c_char_p]  # fmt: skip

    def shape(self, data: bytes) -> tuple[int, int] | None:
        """Height and width of a JPEG; None for a file that this library leaves to Pillow.

        It does so with whatever is no JPEG of 8 bits in grey or YCbCr, is turned by EXIF, or does not end as it should.
        Raises ``ValueError`` for a damaged one.
        """
        found, message = (ctypes.c_int32 * 2)(), ctypes.create_string_buffer(_MESSAGE)
        ended = self._shape(data, len(data), found, message)
        if ended not in (DONE, NOT_HERE):
            raise ValueError(message.value.decode(errors="replace"))
        return (found[1], found[0]) if ended == DONE else None

    def cut(self, data: bytes, cut: Cut, size: int) -> np.ndarray:
        """The cut of a JPEG that has a :meth:`shape`: uint8 ``[size, size, 3]``. Raises ``ValueError`` for a damaged one."""
        out, message = np.empty((size, size, 3), np.uint8), ctypes.create_string_buffer(_MESSAGE)
        box, clip = (ctypes.c_double * 4)(*cut.box), (ctypes.c_int32 * 4)(*cut.clip)
        if self._cut(data, len(data), box, clip, size, cut.flip, cut.finest, out.ctypes.data, message) != DONE:
            raise ValueError(message.value.decode(errors="replace"))
        return out


@functools.cache
def jpeg_cutter() -> JpegCutter | None:
    """The library of this machine, compiled if it has not been; None, with a warning that says why, where that cannot be."""
    try:
        return _load()
    except Unfit as error:
        logger.warning("JPEGs are decoded by Pillow, about half as fast: %s", error)
        return None


def _load() -> JpegCutter:
    try:
        cutter = JpegCutter(library(SOURCE, link_flags=["-ljpeg", "-lm"]))
    except Unfit as error:
        raise Unfit(f"{error}; are libjpeg-turbo's headers (libjpeg-turbo8-dev, libjpeg62-turbo-dev) installed?") from error
    _check(cutter)
    return cutter


def _check(cutter: JpegCutter) -> None:
    """Compiled for another libjpeg than it meets, it would call every file damaged."""
    ramp = np.arange(48 * 64 * 3, dtype=np.float64).reshape(48, 64, 3) / (48 * 64 * 3) * 255
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, "JPEG", quality=95)
    cut = Cut((5.0, 3.5, 50.0, 40.25), (0, 0, 64, 48), flip=True, finest=2.0)
    try:
        ours = cutter.cut(file.getvalue(), cut, 16) if cutter.shape(file.getvalue()) == (48, 64) else None
    except ValueError as error:
        raise Unfit("the compiled cutter calls a good file damaged") from error
    with Image.open(file) as picture:
        theirs = cut_array(np.asarray(picture), cut, 16)
    if ours is None or int(np.abs(ours.astype(int) - theirs).max()) > 2:
        raise Unfit("the compiled cutter does not give Pillow's pixels")
