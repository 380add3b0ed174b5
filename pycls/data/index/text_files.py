"""Text files that people have made, with whatever program: UTF-8, with a byte order mark or without."""

import codecs
from pathlib import Path

from pycls.errors import InputError

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def read_text(path: Path, name: str) -> str:
    """The text, without the byte order mark.

    Args:
        path: the file.
        name: what messages call it, with the path.

    Raises:
        InputError: it cannot be read, or is in another encoding than UTF-8; with the line where that shows.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    zero = data.find(b"\0")
    if data.startswith(_OTHER_MARKS) or 0 <= zero < 4:
        raise InputError(f"{name} is not UTF-8 but UTF-16 or UTF-32: save it as UTF-8")
    if zero >= 0:
        raise InputError(f"{name} is no text: line {_line(data, zero)} holds a zero byte")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: line {_line(data, error.start)} holds the byte "
                         f"0x{data[error.start]:02x}; save it as UTF-8") from None  # fmt: skip


def _line(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1
