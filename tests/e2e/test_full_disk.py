"""A disk that fills up while a run saves."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import DIGITS, assert_same_run, call, newest, snapshot  # type: ignore[import-not-found]

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system with space for one checkpoint, not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=1700k"
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_no_checkpoint(small_disk: Path, trained: Path) -> None:
    folder = small_disk / "run"
    ended = call(*RUN, "OUT_DIR", folder)
    assert ended.code == 1 and "Traceback" not in ended.err, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: cannot write") and "step_000000038" in last and "No space left" in last, ended.err
    assert "bytes are free there" in last and newest(folder)["epoch"] == 1
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.safetensors", "step_000000019.safetensors"]
    again = call(*RUN, "OUT_DIR", folder)
    assert again.code == 1 and "continuing from epoch 2, step 0" in again.out and newest(folder)["epoch"] == 1
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert call(*RUN, "OUT_DIR", folder).code == 0
    assert_same_run(folder, trained)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """A limit on the size of a file, as of a quota, in the place of the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        ended = call(*RUN, "OUT_DIR", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == 1 and ended.err.startswith("error: cannot write") and ended.err.count("\n") == 1, ended.err
    assert "step_000000019" in ended.err and not [name for name in snapshot(tmp_path) if "checkpoints" in name]
    assert call(*RUN, "OUT_DIR", tmp_path).code == 0
