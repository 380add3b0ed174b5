"""The compiled JPEG cutter: built once a machine from ``jpeg_cut.c``, where there are a C compiler and libjpeg's headers.

Nothing depends on it: without it, and for any file that it leaves alone, Pillow does the same. It is checked against Pillow
before it is used.
"""

import contextlib
import ctypes
import functools
import hashlib
import io
import logging
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pycls.data.cache import cache_folder, keep
from pycls.data.cut import Cut, cut_array

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("jpeg_cut.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-shared", "-fPIC")
DONE, NOT_HERE = 0, 1
_MESSAGE = 256


class JpegCutter:
    """The functions of the compiled library.

    Args:
        path: the library.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._shape, self._cut = library.pycls_jpeg_shape, library.pycls_jpeg_cut
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
    """The library of this machine, compiled if it has not been; None where that cannot be (:func:`why_not`)."""
    found = None
    with contextlib.suppress(OSError, subprocess.SubprocessError, _Unfit):
        found = _load()
    if found is None:
        logger.warning("JPEGs are decoded by Pillow, about half as fast: %s", why_not())
    return found


def why_not() -> str:
    """Why :func:`jpeg_cutter` gives nothing: what to install."""
    if platform.system() != "Linux" and platform.system() != "Darwin":
        return f"there is no build for {platform.system()}"
    if _compiler() is None:
        return "there is no C compiler (cc, gcc or clang)"
    return "it cannot be compiled: are libjpeg-turbo's headers (libjpeg-turbo8-dev, libjpeg62-turbo-dev) installed?"


class _Unfit(Exception):
    """A library that does not give Pillow's pixels."""


def _compiler() -> str | None:
    return next((path for path in map(shutil.which, COMPILERS) if path), None)


def _load() -> JpegCutter | None:
    compiler = _compiler()
    if compiler is None:
        return None
    path = cache_folder() / f"jpeg_cut-{_key(compiler)}.so"
    if path.exists() or keep(path, lambda target: _compile(compiler, target)):
        cutter = JpegCutter(path)
    else:  # nowhere to keep it
        with tempfile.TemporaryDirectory() as folder:
            _compile(compiler, Path(folder) / path.name)
            cutter = JpegCutter(Path(folder) / path.name)
    _check(cutter)
    return cutter


def _key(compiler: str) -> str:
    """What the library is a function of: source, compiler and processor, since it is compiled for this very one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    about = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, platform.platform(), processor])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    for tuning in (["-march=native"], ["-mcpu=native"], []):
        command = [compiler, *FLAGS, *tuning, str(SOURCE), "-o", str(target), "-ljpeg", "-lm"]
        if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0:
            return
    raise _Unfit("it cannot be compiled")


def _check(cutter: JpegCutter) -> None:
    """Compiled for another libjpeg than it meets, it would call every file damaged."""
    ramp = np.arange(48 * 64 * 3, dtype=np.float64).reshape(48, 64, 3) / (48 * 64 * 3) * 255
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, "JPEG", quality=95)
    cut = Cut((5.0, 3.5, 50.0, 40.25), (0, 0, 64, 48), flip=True, finest=2.0)
    try:
        ours = cutter.cut(file.getvalue(), cut, 16) if cutter.shape(file.getvalue()) == (48, 64) else None
    except ValueError as error:
        raise _Unfit from error
    with Image.open(file) as picture:
        theirs = cut_array(np.asarray(picture), cut, 16)
    if ours is None or int(np.abs(ours.astype(int) - theirs).max()) > 2:
        raise _Unfit
