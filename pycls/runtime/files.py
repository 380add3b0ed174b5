"""Files that are whole or not there, and a folder that one run has for itself."""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pycls.errors import InputError, RunError

logger = logging.getLogger(__name__)

_TEMPORARY = ".pycls-tmp"
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def make_out_dir(path: str | os.PathLike[str]) -> Path:
    """Create the folder if need be and make sure that files can be created in it.

    Raises:
        InputError: it is a file, or cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written to: {reason_of(error, folder)}") from None
    return folder


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replace a file as a whole: a reader, also after a power cut, finds the old content or the new.

    Args:
        path: the file; its folder exists.
        write: writes the content to the binary stream it is given.

    Raises:
        RunError: the disk is full, or the system refuses otherwise. The old file is intact.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        with _new_file(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except Exception as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise RunError(f"cannot write {target}: {reason_of(cause, target.parent)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def atomic_link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make ``target`` a second name of the file ``source``, or a copy where the file system has no links; in one step.

    Raises:
        RunError: the system refuses. The old ``target`` is intact.
    """
    link = _temporary(Path(target))
    try:
        os.link(source, link)
    except OSError:
        with open(source, "rb") as original:
            atomic_write(target, lambda file: shutil.copyfileobj(original, file))
        return
    try:
        os.replace(link, target)
        _sync_folder(link.parent)
    except OSError as error:
        raise RunError(f"cannot write {target}: {reason_of(error, link.parent)}") from error
    finally:
        with contextlib.suppress(OSError):
            link.unlink()  # to rename one name of a file to another one does nothing


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove what :func:`atomic_write` left below the folder when its process was killed. Hold the lock for this."""
    for path in Path(folder).rglob(f".*{_TEMPORARY}"):
        with contextlib.suppress(OSError):
            path.unlink()


class RunLock:
    """Exclusive use of an output folder, held until :meth:`release` or the end of the process, however it ends.

    The lock is the kernel's (``flock``) on ``.lock`` in the folder; the file's content, process id and host, is only
    for the message. The file itself stays. Use as a context manager, or call :meth:`acquire`.

    Args:
        out_dir: the folder, which exists.
        wait_s: seconds to wait for a holder that is about to end (killed a moment ago, perhaps) before refusing.
    """

    def __init__(self, out_dir: str | os.PathLike[str], wait_s: float = 1.0) -> None:
        self.out_dir = Path(out_dir)
        self.wait_s = wait_s
        self._fd: int | None = None
        os.register_at_fork(after_in_child=self._forget)

    def acquire(self) -> None:
        """Take the lock and remove the temporary files of dead runs.

        Raises:
            InputError: another process holds it; says which.
        """
        assert self._fd is None, "the lock is already held"
        path = self.out_dir / ".lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"cannot open {path}: {reason_of(error, self.out_dir)}") from None
        try:
            self._lock(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk must not keep a run from being continued
            os.truncate(fd, 0)
            os.write(fd, f"{os.getpid()} {socket.gethostname()}\n".encode())
        remove_temporaries(self.out_dir)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _lock(self, fd: int) -> None:
        deadline = time.monotonic() + self.wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(self._refusal(fd)) from None
            except OSError as error:
                logger.warning("%s: this file system has no locks (%s): see that no two runs use it at once",
                               self.out_dir, error.strerror)  # fmt: skip
                return
            time.sleep(0.05)

    def _refusal(self, fd: int) -> str:
        pid, _, host = os.pread(fd, 1000, 0).decode(errors="replace").strip().partition(" ")
        holder = f"process {pid} on {host}" if host else "another process"
        return f"the output folder {self.out_dir} is in use by {holder}; wait for it, end it, or choose another OUT_DIR"

    def _forget(self) -> None:
        """In a forked child, such as a worker process: the lock is the parent's and must end with it."""
        self.release()


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], notice: str) -> Iterator[None]:
    """One process at a time, by the kernel's lock on a file that is made for this; the others wait.

    The file is gone afterwards, unless the process was killed; a file that is left does no harm.

    Args:
        path: the file; its folder exists.
        notice: is logged when there is something to wait for.

    Raises:
        OSError: the file cannot be made.
    """
    fd = _take(path, notice)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)


def _take(path: str | os.PathLike[str], notice: str) -> int:
    """The descriptor of the locked file at ``path``."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info(notice)
                fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s)", path, error.strerror)
            return fd
        except BaseException:
            os.close(fd)
            raise
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)  # who held it has removed it meanwhile: the next process makes another file


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that is closed also when what is still buffered does not fit on the disk."""
    file = open(path, "xb")  # noqa: SIM115
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    file.close()


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut, where the file system can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def _os_error(error: BaseException) -> OSError | None:
    """The OSError behind an exception: ``torch.save`` wraps what its stream raises in a RuntimeError."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def reason_of(error: OSError, folder: Path) -> str:
    """The system's message, with the free space where that is the reason."""
    reason = error.strerror or str(error)
    if error.errno in _OUT_OF_SPACE:
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(folder).free:,} bytes are free there)"
    return reason
