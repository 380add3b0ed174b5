"""Commands whose reader goes away: real processes and real pipes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycls.runtime.pipe import READER_GONE, run

ROOT = Path(__file__).parents[2]
DIGITS = ["--cfg", str(ROOT / "configs/digits/lenet5_softmax.yaml"), "DEVICE", "cpu", "NUM_THREADS", "1"]
COMMANDS = [
    ["run_net.py", "--help-options"],
    ["run_net.py", "--mode", "info", *DIGITS],
    ["zoo.py", "list"],
    ["export.py", "-h"],
]


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_reader_that_has_seen_enough(words: list[str], unread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as other tools do. Small outputs reach the pipe only when the process ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = subprocess.run(command(words), stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_head_has_the_first_line() -> None:
    words = " ".join(command(COMMANDS[1]))
    done = subprocess.run(["bash", "-c", f"{words} | head -n 1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


def test_nobody_reads_an_error(unread: int) -> None:
    done = subprocess.run(command(["run_net.py", "--cfg", "none.yaml"]), stdout=unread, stderr=unread, check=False)
    assert done.returncode == READER_GONE


def test_a_training_goes_on(tmp_path: Path, unread: int) -> None:
    words = ["run_net.py", *DIGITS, "OPTIM.MAX_EPOCH", "1", "OUT_DIR", str(tmp_path / "run")]
    done = subprocess.run(command(words), stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run/result.json").is_file()


def test_another_pipe_is_another_matter() -> None:
    def main() -> int:
        raise BrokenPipeError("a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        run(main)
