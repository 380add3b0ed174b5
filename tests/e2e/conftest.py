"""Finished runs and data that many tests share."""

import shutil
from pathlib import Path

import pytest
from running import DIGITS, FAULTY, call, finish, start, write_mnist  # type: ignore[import-not-found]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 epochs on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    ended = call(*DIGITS, "OPTIM.MAX_EPOCH", 3, "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    (folder.parent / "printed.txt").write_text(ended.out)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to do with as one likes. Its result is removed: it is to be continued."""
    folder = tmp_path / "copied"
    shutil.copytree(trained, folder)
    (folder / "result.json").unlink()
    return folder


@pytest.fixture(scope="session")
def random_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATA.ROOT with an MNIST of 720 random training images (60 of them held out) and 10,007 test images."""
    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root, 720, 10_007)
    return root


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``FAULTY`` on two processes in which nothing fails."""
    folder = tmp_path_factory.mktemp("undisturbed pair") / "run"
    ended = finish(start(*FAULTY, "NUM_PROCS", 2, "OUT_DIR", folder))
    assert ended.code == 0, ended
    return folder
