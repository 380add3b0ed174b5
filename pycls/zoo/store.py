"""The cache of weights, and the lock file that pins what was fetched.

For weights whose publisher gives no checksum the first verified download decides: it must be readable as weights, its
SHA-256 is written down in ``weights.lock`` in the cache, and from then on nothing else is accepted under that URL, on this
machine or on any that the file is copied to.
"""

import json
from pathlib import Path

from pycls.errors import DamagedFile, InputError, RunError
from pycls.runtime.cache import cache_dir, place_of
from pycls.runtime.download import Check, WrongContent, digest_of, download, has_digest, refuse_other_urls
from pycls.runtime.files import atomic_write, exclusive, reason_of

LOCK = "weights.lock"


def weights_dir() -> Path:
    """Where the files and the lock file are."""
    return cache_dir() / "weights"


def fetch(url: str, sha256: str = "") -> Path:
    """The file of weights at a URL: from the cache if it is there, verified in any case.

    Args:
        url: http or https.
        sha256: what is published of it: all digits, the first ones, or none.

    Raises:
        InputError: there is no such file, or what is there are no weights.
        RunError: it cannot be fetched, or is not what it was, or should be.
    """
    refuse_other_urls(url)
    place, pinned = place_of(url, weights_dir()), pins().get(url, "")
    check = _check(url, sha256, pinned)
    if place.is_file():
        try:
            check(place)
        except (WrongContent, DamagedFile) as error:
            raise RunError(f"{place} is not what was fetched: {error}; remove it to have it fetched again") from None
    else:
        download(url, place, check)
    if not pinned:
        _pin(url, digest_of(place))
    return place


def pins() -> dict[str, str]:
    """The SHA-256 of everything that was ever fetched, by URL.

    Raises:
        InputError: the lock file is damaged.
    """
    path = weights_dir() / LOCK
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(value, str) and len(value) == 64 for value in found.values()):
            raise ValueError("not a mapping of URLs to digests")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it, or remove it to accept what is fetched next") from None
    return found


def _check(url: str, sha256: str, pinned: str) -> Check:
    def check(path: Path) -> None:
        if sha256:
            has_digest("sha256", sha256)(path)
        if pinned:
            try:
                has_digest("sha256", pinned)(path)
            except WrongContent as error:
                raise WrongContent(f"{error} (pinned in {weights_dir() / LOCK} when it was first fetched)") from None
        if not sha256 and not pinned:
            from pycls.engine.checkpoint.state_file import (
                load_weights,  # imports torch, which looking things up need not wait for
            )

            try:
                load_weights(path)
            except DamagedFile as error:
                raise WrongContent(str(error).replace(str(path), "it")) from None
            except InputError as error:
                raise InputError(str(error).replace(str(path), url)) from None

    return check


def _pin(url: str, sha256: str) -> None:
    path = weights_dir() / LOCK
    try:
        with exclusive(path.with_name(f".{LOCK}.lock"), f"waiting for {path}"):
            data = json.dumps(pins() | {url: sha256}, indent=1, sort_keys=True) + "\n"
            atomic_write(path, lambda file: file.write(data.encode()))
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason_of(error, path.parent)}") from error
