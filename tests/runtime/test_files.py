"""Whole files, and the lock, with real processes."""

import errno
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from pycls.errors import InputError, RunError
from pycls.runtime.files import RunLock, atomic_link, atomic_write, make_out_dir, remove_temporaries

Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.timeout(60)


def put(content: bytes) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(content)


def test_the_content_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    atomic_write(path, put(b"old"))

    def write(file: BinaryIO) -> None:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old", "not before all of it is there"
        file.write(b"w")

    atomic_write(path, write)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model"]


def test_it_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "ours", put(b""))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        raise OSError(number, os.strerror(number))

    reason = rf"{os.strerror(number)} \([\d,]+ bytes are free there\)"
    with pytest.raises(RunError, match=f"^cannot write {path}: {reason}$"):
        atomic_write(path, write)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model"]


def test_an_os_error_inside_torch_save_is_found(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="No space left on device"):
        atomic_write(tmp_path / "model", lambda _: torch.save(torch.zeros(10), Full()))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_real_failing_write(tmp_path: Path, python: Start) -> None:
    """The kernel refuses to let the file grow; nothing is simulated."""
    (tmp_path / "model").write_bytes(b"old")
    process = python("""
        import resource, sys, torch
        from pycls.errors import RunError
        from pycls.runtime.files import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for write in (lambda f: f.write(bytes(300_000)), lambda f: torch.save(torch.zeros(100_000), f)):
            try:
                atomic_write(sys.argv[1], write)
            except RunError as error:
                print(error)
    """, str(tmp_path / "model"))  # fmt: skip
    out, err = process.communicate(timeout=30)
    assert out == f"cannot write {tmp_path / 'model'}: File too large\n" * 2, err
    assert (tmp_path / "model").read_bytes() == b"old" and os.listdir(tmp_path) == ["model"]


def test_an_error_of_the_writers_own_is_passed_on(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        atomic_write(tmp_path / "model", write)
    assert os.listdir(tmp_path) == []


def test_killed_while_writing_the_old_file_is_intact_and_the_rest_is_cleared(tmp_path: Path, python: Start) -> None:
    path = tmp_path / "checkpoints" / "model"
    path.parent.mkdir()
    path.write_bytes(b"old")
    process = python("""
        import sys, time
        from pycls.runtime.files import atomic_write
        def write(file):
            file.write(bytes(100_000))
            print("half", flush=True)
            time.sleep(50)
        atomic_write(sys.argv[1], write)
    """, str(path))  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    assert path.read_bytes() == b"old" and len(os.listdir(path.parent)) == 2
    other = path.parent / ".other.tmp"
    other.touch()
    with RunLock(tmp_path):
        assert sorted(os.listdir(path.parent)) == [".other.tmp", "model"]
    remove_temporaries(tmp_path)
    assert other.exists()


def test_make_out_dir(tmp_path: Path) -> None:
    assert make_out_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_out_dir(tmp_path / "a" / "b").is_dir() and os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"{bad} cannot be written to"):
            make_out_dir(bad)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        make_out_dir(tmp_path)


HOLDER = """
import multiprocessing, sys, time
from pycls.runtime.files import RunLock
lock = RunLock(sys.argv[1])
lock.acquire()
if len(sys.argv) > 2:  # a forked child, such as a worker process, that outlives its parent for a while
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,)).start()
    time.sleep(0.5)
print("held", flush=True)
time.sleep(50)
"""


def test_a_folder_in_use_is_refused_naming_the_holder(tmp_path: Path, python: Start) -> None:
    process = python(HOLDER, str(tmp_path))
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"in use by process {process.pid} on {os.uname().nodename}; "):
        RunLock(tmp_path, wait_s=0.1).acquire()
    process.send_signal(signal.SIGKILL)
    RunLock(tmp_path, wait_s=5).acquire()
    process.communicate()


def test_the_lock_ends_with_its_process_though_a_forked_child_lives_on(tmp_path: Path, python: Start) -> None:
    process = python(HOLDER, str(tmp_path), "fork")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.kill()
    start = time.monotonic()
    with RunLock(tmp_path, wait_s=2.5):
        assert time.monotonic() - start < 2
    process.communicate()


def test_the_lock_is_free_after_release_and_not_before(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path, wait_s=0), RunLock(tmp_path, wait_s=0)
    with first, pytest.raises(InputError, match=f"process {os.getpid()} on"):
        second.acquire()
    with second:
        pass
    first.release()


def test_a_lock_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        RunLock(tmp_path / "none").acquire()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pycls.runtime.files.fcntl.flock", no_locks)
    with RunLock(tmp_path):
        assert "no locks (No locks available)" in caplog.text


def test_atomic_link_gives_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    for _ in range(2):  # the second time both are the same file already
        atomic_link(tmp_path / "a", tmp_path / "b")
        assert os.path.samefile(tmp_path / "a", tmp_path / "b") and sorted(os.listdir(tmp_path)) == ["a", "b"]

    def no_links(*_: object) -> None:
        raise OSError("this file system has none")

    monkeypatch.setattr(os, "link", no_links)
    atomic_link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "new" and not os.path.samefile(tmp_path / "a", tmp_path / "c")
    with pytest.raises(RunError, match="cannot write"):
        atomic_link(tmp_path / "a", tmp_path / "none" / "c")
