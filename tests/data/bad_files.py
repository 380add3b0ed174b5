"""Twenty kinds of files that are called images and are none."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something smooth, so that JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    photograph(40, 30).save(file, kind, **options)
    return file.getvalue()


def _cut(kind: str, share: float, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        whole = encoded(kind, **options)
        return whole[: int(share * len(whole))]

    return make


def _bomb() -> bytes:
    """A PNG that says it is 60,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + encoded("PNG")[33:]


def _without_size() -> bytes:
    """A JPEG of no lines."""
    whole = bytearray(encoded("JPEG"))
    place = whole.index(b"\xff\xc0")
    whole[place + 5 : place + 9] = bytes(4)
    return bytes(whole)


def _without_tables() -> bytes:
    """A JPEG whose quantisation tables are gone."""
    whole = encoded("JPEG")
    return whole[: whole.index(b"\xff\xdb")] + whole[whole.index(b"\xff\xc0") :]


BAD: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "one_byte.jpg": lambda: b"\xff",
    "header_only.jpg": _cut("JPEG", 0.1),
    "half.jpg": lambda: encoded("JPEG")[:-200],
    "progressive_half.jpg": lambda: encoded("JPEG", progressive=True)[:-200],
    "markers_only.jpg": lambda: b"\xff\xd8\xff\xd9",
    "no_size.jpg": _without_size,
    "no_tables.jpg": _without_tables,
    "text.jpg": lambda: b"no image\n" * 50,
    "page.jpg": lambda: b"<!DOCTYPE html><title>404 Not Found</title>" * 9,
    "zeros.jpg": lambda: bytes(5000),
    "noise.jpg": lambda: np.random.default_rng(0).bytes(5000),
    "zipped.jpg": lambda: gzip.compress(encoded("JPEG")),
    "half.png": _cut("PNG", 0.5),
    "bomb.png": _bomb,
    "half.webp": _cut("WEBP", 0.5),
    "half.bmp": _cut("BMP", 0.5),
    "half.gif": _cut("GIF", 0.1),
    "half.tif": _cut("TIFF", 0.05),
    "half.ppm": _cut("PPM", 0.5),
}
"""File name -> its content."""


def write_bad(folder: Path, kind: str, number: int) -> Path:
    path = folder / f"{number:04}_{kind}"
    path.write_bytes(BAD[kind]())
    return path
