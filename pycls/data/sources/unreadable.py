"""Images that cannot be read: named once, counted, and no more of them than was agreed on."""

import logging
import os
from pathlib import Path

from pycls.errors import RunError

logger = logging.getLogger(__name__)


class Unreadable:
    """The account of one split of a data set.

    Args:
        limit: how many different images may be unreadable.
        split: which part of the data it is about.
        record: a file that each is written to as a line, ``split<TAB>file<TAB>reason``; it may hold others already, found
            before the run was continued, or by another process. None for no file.
    """

    def __init__(self, limit: int, split: str, record: Path | None = None) -> None:
        self._limit, self._split, self._record = limit, split, record
        self.reasons: dict[str, str] = {}
        """Name -> what was wrong, of all images known to be unreadable."""
        if record is not None:
            self.reasons = read_record(record).get(split, {})

    def add(self, name: str, reason: str) -> None:
        """Takes note of an image. Raises :class:`RunError` when it is one too many."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        logger.warning("%s cannot be read and is left out: %s", name, reason)
        if self._record is not None and self._record.parent.is_dir():
            self._write(name, reason)
        if len(self.reasons) > self._limit:
            raise RunError(
                f"{name} cannot be read ({reason}): with it {len(self.reasons)} images of {self._split} are unreadable, "
                f"and DATA.MAX_UNREADABLE is {self._limit}"
            )

    def _write(self, name: str, reason: str) -> None:
        assert self._record is not None
        line = "\t".join(" ".join(word.split()) or "-" for word in (self._split, name, reason)) + "\n"
        try:  # one write to the end of the file: several processes do so
            fd = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(fd, line.encode("utf-8", errors="replace"))
            finally:
                os.close(fd)
        except OSError as error:
            raise RunError(f"cannot write {self._record}: {error.strerror}") from error


def read_record(record: Path) -> dict[str, dict[str, str]]:
    """Split -> name -> reason, of the unreadable images that a record names."""
    found: dict[str, dict[str, str]] = {}
    if record.is_file():
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split("\t")
            if len(words) == 3:
                found.setdefault(words[0], {})[words[1]] = words[2]
    return found
