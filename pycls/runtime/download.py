"""Files from the web: resumed, checked, whole or not there, and fetched once however many processes ask.

A file arrives under a hidden name beside its place, ``.NAME.part``, with what the server said of it in ``.NAME.part.json``.
It gets its name when it is complete and its check has passed; so whatever has a good name is good, also after a kill.
"""

import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pycls.errors import InputError, RunError
from pycls.runtime.files import exclusive, reason_of
from pycls.runtime.progress import Progress

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte from the server
TRIES = 4  # in a row that bring the file no further
BACKOFF_S = 1.0  # before the second try; doubled before each later one
_FURTHER = 1 << 20  # bytes that a try must bring not to count as failed
_BLOCK = 1 << 20
_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)

Check = Callable[[Path], object]
"""Looks at a complete file and raises :class:`WrongContent` if it is not what was asked for."""


class WrongContent(RunError):
    """A file is complete but not what was asked for."""


class _Incomplete(Exception):
    """The file did not arrive whole; another try may bring the rest."""


@dataclass(frozen=True)
class _Origin:
    """What a server said of the file of which a part has arrived: whether a later part belongs to the same file."""

    url: str
    validator: str  # its strong ETag, or its date; never empty
    size: int | None  # bytes in all


def download(url: str, place: str | os.PathLike[str], check: Check) -> Path:
    """Fetches a file unless it is there already.

    Connections that break are resumed where they broke off, at once or by the next run, if the server can do
    that and still has the same file. Of several processes one fetches and the others wait for it.

    Args:
        url: http or https.
        place: the file to be; its folder is made if need be.
        check: looks at the complete file before it gets its name.

    Returns:
        ``place``.

    Raises:
        InputError: there is no such file on the server, or the URL is none.
        WrongContent: the server has something else than was asked for. Nothing is kept of it.
        RunError: no network, a server that fails, a full disk. What has arrived is kept for the next time.
    """
    place = Path(place)
    if place.is_file():
        return place
    refuse_other_urls(url)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(place.with_name(f".{place.name}.lock"), f"another process is fetching {place.name}; waiting for it"):
            if not place.is_file():
                _fetch(url, place, check)
    except OSError as error:
        raise RunError(f"cannot write {place}: {reason_of(error, place.parent)}") from error
    return place


def shown(url: str) -> str:
    """A URL for people: without credentials, query and fragment, which may be secrets."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_url(text: str) -> bool:
    """Whether a word is meant as a URL and not as a file's name."""
    return "://" in text


def has_digest(algorithm: str, digest: str) -> Check:
    """A check for the hexadecimal digest, or its first digits where no more of it is published.

    Args:
        algorithm: ``"sha256"`` or ``"md5"``.
        digest: of a SHA-256 at least 8 digits.
    """

    def check(path: Path) -> None:
        found = digest_of(path, algorithm)
        if not found.startswith(digest.lower()):
            raise WrongContent(f"its {algorithm} is {found[: max(16, len(digest))]}, and should be {digest}")

    return check


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in hexadecimal."""
    total = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def refuse_other_urls(url: str) -> None:
    """Raises :class:`InputError` for what is no URL of http or https."""
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", url):
        raise InputError(f"cannot fetch {url!r}: a URL starts with https:// or http:// and a host, and spaces and "
                         "characters beyond ASCII are written as %20 and the like")  # fmt: skip


def _fetch(url: str, place: Path, check: Check) -> None:
    """Tries until the file is whole; then checks it and gives it its name."""
    part, failures, furthest, spliced = _PartialFile(place), 0, 0, False
    while True:
        try:
            spliced |= part.receive(url)
        except _Incomplete as incomplete:
            arrived = part.size()
            failures = 0 if arrived >= furthest + _FURTHER else failures + 1
            furthest = max(furthest, arrived)
            if failures >= TRIES:
                kept = "; what has arrived is kept, and the same command goes on with it" if arrived else ""
                raise RunError(f"cannot fetch {shown(url)}: {incomplete}, {TRIES} times in a row{kept}") from incomplete
            time.sleep(BACKOFF_S * 2 ** max(0, failures - 1))
            continue
        try:
            check(part.path)
        except WrongContent as wrong:
            part.remove()
            if not spliced:
                raise WrongContent(f"{shown(url)} is not what was expected: {wrong}; nothing of it was kept") from None
            spliced = False  # parts of two files, perhaps: once more from the start
            continue
        except Exception:
            part.remove()
            raise
        part.finish()
        return


class _PartialFile:
    """What has arrived of a file, and of which file it is a part.

    Args:
        place: the file to be.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.path = place.with_name(f".{place.name}.part")
        self._origin_path = place.with_name(f".{place.name}.part.json")

    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def receive(self, url: str) -> bool:
        """Receives the rest, or all. Returns whether it was only a rest.

        Raises:
            _Incomplete: it did not arrive whole.
            InputError: there is no such file.
        """
        origin = self._origin(url)
        start = self.size() if origin else 0
        headers = {"User-Agent": "pycls", "Accept-Encoding": "identity"}
        if origin and start:
            if start == origin.size:
                return True  # killed between the last byte and the check
            headers |= {"Range": f"bytes={start}-", "If-Range": origin.validator}
        try:
            # the scheme was looked at; http.client speaks nothing else
            with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
                if answer.status == 206 and not (origin and _continues(answer.headers, origin, start)):
                    self.remove()
                    raise _Incomplete("the server answered with another part than it was asked for")
                self._store(answer, url, start if answer.status == 206 else 0)
                return answer.status == 206
        except urllib.error.HTTPError as error:
            error.close()
            answer_line = f"the server answers {error.code} {_plain(error.reason)}".rstrip()
            if error.code == 416:
                self.remove()
            elif error.code not in _WORTH_ANOTHER_TRY:
                raise InputError(f"cannot fetch {shown(url)}: {answer_line}") from None
            raise _Incomplete(answer_line) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Incomplete(_one_line(error)) from error

    def _store(self, answer: Any, url: str, start: int) -> None:
        """Writes the body behind the first ``start`` bytes, to the disk before this returns."""
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if not start:
            self._remember(url, _validator(answer.headers), total)
        size = f" ({_readable(total)})" if total is not None else ""
        logger.info("fetching %s%s%s", shown(url), size, f", from {_readable(start)} on" if start else "")
        try:
            file = open(self.path, "r+b" if start else "wb")  # noqa: SIM115
            with file, Progress(total or 0, self.place.name, initial=start, unit="B") as bar:
                file.seek(start)
                while block := _read(answer):
                    file.write(block)
                    bar.update(len(block))
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
                arrived = file.tell()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {reason_of(error, self.path.parent)}") from error
        if total is not None and arrived != total:
            raise _Incomplete(f"the connection ended after {arrived:,} of {total:,} bytes")

    def finish(self) -> None:
        """Gives the file its name."""
        os.replace(self.path, self.place)
        self._origin_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forgets what has arrived."""
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)

    def _remember(self, url: str, validator: str, size: int | None) -> None:
        """Before the first byte is written, so that no part is ever taken for one of another file."""
        self.remove()
        if validator:
            self._origin_path.write_text(json.dumps(asdict(_Origin(url, validator, size))), encoding="utf-8")

    def _origin(self, url: str) -> _Origin | None:
        """What is here a part of; None where it is of no use for this URL."""
        try:
            origin = _Origin(**json.loads(self._origin_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == url else None


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.HTTPError(req.full_url, code, "a redirection away from https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_NoDowngrade)


def _read(answer: Any) -> bytes:
    """The next bytes of a body. Raises :class:`_Incomplete` when there are none and should be."""
    try:
        return bytes(answer.read1(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise _Incomplete(_one_line(error)) from error


def _validator(headers: Any) -> str:
    """The strong ETag, or the date of the last change; empty if the server gives neither."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _continues(headers: Any, origin: _Origin, start: int) -> bool:
    """Whether a partial answer goes on exactly where, and with exactly what, was left off."""
    place, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    same_size = origin.size is None or total in ("*", str(origin.size))
    return place.startswith(f"{start}-") and same_size and _validator(headers) in ("", origin.validator)


def _readable(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size:,} bytes"


def _one_line(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return _plain(getattr(reason, "strerror", None) or reason) or type(error).__name__


def _plain(text: object) -> str:
    """In one line, and without the control characters that a server may have put into it."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
