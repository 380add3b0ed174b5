"""Image files that Pillow does not write: JPEGs of any sampling factors, TIFFs of any depth."""

import struct
from collections.abc import Sequence

import numpy as np

ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
STEP = 6
"""Of quantisation, of all frequencies."""
AC_SYMBOLS = [0x00, 0xF0, *(16 * run + size for run in range(16) for size in range(1, 11))]

Factors = Sequence[tuple[int, int]]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _huffman(table: int, length: int, symbols: Sequence[int]) -> bytes:
    """A table in which all codes are of one length: a symbol's code is its place."""
    counts = [len(symbols) if bits == length else 0 for bits in range(1, 17)]
    return _segment(0xC4, bytes([table, *counts, *symbols]))


def _bits(value: int, size: int) -> str:
    if size == 0:
        return ""
    return format(value if value > 0 else value + (1 << size) - 1, f"0{size}b")


def _block(levels: np.ndarray, before: int) -> str:
    """64 quantised coefficients in zigzag order, and the last block's first one -> code."""
    size = abs(int(levels[0]) - before).bit_length()
    code = [format(size, "04b"), _bits(int(levels[0]) - before, size)]
    last = 0
    for place in np.flatnonzero(levels[1:]) + 1:
        run = int(place) - last - 1
        code += ["00000001"] * (run // 16)
        value = int(levels[place])
        size = abs(value).bit_length()
        code += [format(AC_SYMBOLS.index(16 * (run % 16) + size), "08b"), _bits(value, size)]
        last = int(place)
    return "".join(code) + ("00000000" if last < 63 else "")


def _levels(plane: np.ndarray) -> np.ndarray:
    """A plane of whole blocks -> ``[rows, columns, 64]`` quantised coefficients in zigzag order."""
    k = np.arange(8)
    basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.where(k[:, None] == 0, np.sqrt(1 / 8), 0.5)
    blocks = plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8).transpose(0, 2, 1, 3) - 128.0
    return np.round(basis @ blocks @ basis.T / STEP).astype(int).reshape(*blocks.shape[:2], 64)[:, :, ZIGZAG]


def jpeg_header(width: int, height: int, factors: Factors, frame: int = 0xC0, precision: int = 8) -> bytes:
    """A JPEG up to its tables; enough to ask what kind of file it is."""
    layers = b"".join(bytes([number + 1, 16 * h + v, 0]) for number, (h, v) in enumerate(factors))
    jfif = _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") if len(factors) in (1, 3) else b""
    size = struct.pack(">BHHB", precision, height, width, len(factors))
    return b"\xff\xd8" + jfif + _segment(0xDB, bytes([0] + [STEP] * 64)) + _segment(frame, size + layers)


def jpeg_of_factors(planes: Sequence[np.ndarray], factors: Factors) -> bytes:
    """A baseline JPEG.

    Args:
        planes: of the whole image's size, uint8 ``[H, W]`` each: 1 for grey, 3 for YCbCr, 4 for CMYK.
        factors: of each, horizontal and vertical sampling, 1..4.
    """
    height, width = planes[0].shape
    header = jpeg_header(width, height, factors)
    if len(factors) == 1:
        factors = [(1, 1)]  # one layer has its blocks one after another, whatever its factors
    most = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = -(-width // (8 * most[0])), -(-height // (8 * most[1]))
    levels = []
    for plane, (h, v) in zip(planes, factors, strict=True):
        x = (np.arange(8 * h * across) * most[0] // h).clip(max=width - 1)
        y = (np.arange(8 * v * down) * most[1] // v).clip(max=height - 1)
        levels.append(_levels(plane[y][:, x]))
    code, before = [], [0] * len(factors)
    for row in range(down):
        for column in range(across):
            for layer, (h, v) in enumerate(factors):
                for block in levels[layer][row * v : row * v + v, column * h : column * h + h].reshape(-1, 64):
                    code.append(_block(block, before[layer]))
                    before[layer] = int(block[0])
    bits = "".join(code)
    bits += "1" * (-len(bits) % 8)
    data = int("1" + bits, 2).to_bytes(len(bits) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\0")
    scan = bytes([len(factors), *(part for number in range(len(factors)) for part in (number + 1, 0)), 0, 63, 0])
    tables = _huffman(0x00, 4, range(12)) + _huffman(0x10, 8, AC_SYMBOLS)
    return header + tables + _segment(0xDA, scan) + data + b"\xff\xd9"


def tiff(width: int, height: int, data: bytes, bits: int, sample_format: int = 1, photometric: int = 1, order: str = "<",
         orientation: int = 1) -> bytes:  # fmt: skip
    """A TIFF of one layer, not compressed.

    Args:
        width: in pixels.
        height: in pixels.
        data: its rows, each of whole bytes.
        bits: of a pixel.
        sample_format: 1 unsigned, 2 signed, 3 floating-point.
        photometric: 0 if 0 is white, 1 if 0 is black.
        order: of bytes, ``<`` or ``>``.
        orientation: as in EXIF.
    """
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation), (277, 1),
            (278, height), (279, len(data)), (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)
