"""Of two processes that save a state in parts, one is killed before any of its changes of the disk."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from crash_points import Countdown  # type: ignore[import-not-found]

from pycls.engine.checkpoint import checkpoints as checkpoints_module
from pycls.engine.checkpoint.checkpoints import BEST, Checkpoints
from pycls.engine.checkpoint.snapshot import LocalShard
from pycls.engine.checkpoint.state_file import load_state, parts_of
from pycls.runtime.distributed import Ranks
from pycls.runtime.files import remove_temporaries

KEEP = 2
LOST = "[../gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1"


@contextlib.contextmanager
def saving(folder: Path, step: int, rank: int, tag: str) -> Iterator[Checkpoints]:
    """One process's side of a save, all of which call the step the best so far; at the end it is done."""
    state = {"epoch": step, "weight": LocalShard(torch.full((rank + 1, 3), float(step))), "bias": torch.full((2,), step)}
    with mock.patch.object(checkpoints_module, "broadcast_object", lambda _: tag * 8), Checkpoints(folder, KEEP) as mine:
        mine.save(step, state, True, Ranks(rank, 2))
        yield mine


def save(folder: Path, step: int, tag: str) -> None:
    with saving(folder, step, 1, tag), saving(folder, step, 0, tag):
        pass


def killed(folder: Path, rank: int, last: int) -> bool:
    """A forked process saves step 2 until its change ``last``; whether it came so far."""
    child = os.fork()
    if child == 0:
        Countdown(last)
        with contextlib.suppress(BaseException), saving(folder, 2, rank, "b"):
            pass
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def check(state: dict[str, Any] | None) -> int:
    """The step of a state that is whole."""
    assert state is not None
    step = int(state["epoch"])
    assert torch.equal(state["weight"][:], torch.full((3, 3), float(step))) and state["bias"].tolist() == [step, step]
    return step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_before_any_change_of_the_disk(tmp_path: Path, rank: int) -> None:
    """There is then the former checkpoint or the new one, whole, and so is the best; the next save leaves no rest."""
    found = []
    for last in range(100):
        folder = tmp_path / str(last)
        save(folder, 1, "a")
        if rank == 0:
            with saving(folder, 2, 1, "b"):
                pass
        alive = not killed(folder, rank, last)
        if rank == 1:
            with contextlib.suppress(RuntimeError), saving(folder, 2, 0, "b"):
                raise RuntimeError(LOST)
        found.append(check(Checkpoints(folder, KEEP).newest()))
        assert check(load_state(folder / BEST)) <= found[-1]
        remove_temporaries(folder)
        save(folder, 2, "c")
        mains = ["best.safetensors", "step_000000001.safetensors", "step_000000002.safetensors"]
        needed = {name for main in mains for name in parts_of(folder / main)}
        assert len(needed) == 4 and {path.name for path in folder.iterdir()} == {*mains, *needed}
        assert check(Checkpoints(folder, KEEP).newest()) == check(load_state(folder / BEST)) == 2
        if alive:
            break
    assert alive and found == sorted(found) and set(found) == {1, 2} and len(found) > (10 if rank == 0 else 4)
