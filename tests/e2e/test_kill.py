"""A run killed at any instant and started again with the same command ends as if nothing had happened, bit by bit."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from crash_points import RUN, TWO_STAGES  # type: ignore[import-not-found]
from running import Ended, assert_same_run, call, finish, result, start  # type: ignore[import-not-found]

FORK_SERVER = Path(__file__).with_name("crash_points.py")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = call(*RUN, "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    assert len(result(folder)["history"]) == 3 and "ema" in result(folder)["history"][0]
    return folder


# --- real processes, random instants


@pytest.fixture(scope="session")
def lifetime(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """Seconds that a process takes to its first step, and to its end, on this machine as busy as it is now."""
    assert finish(start("--help")).code == 0  # the process that others are forked from has started
    folder = tmp_path_factory.mktemp("lifetime") / "run"
    began = time.monotonic()
    process = start(*RUN, "OUT_DIR", folder)
    while not (folder / "config.yaml").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    first = time.monotonic() - began
    assert finish(process).code == 0
    return first, time.monotonic() - began


def kill_at(process: "subprocess.Popen[str]", seconds: float) -> Ended:
    """SIGKILL after so many seconds of its life, if it still lives then."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return finish(process)


def killed_run(folder: Path, lifetime: tuple[float, float], kills: int, chance: random.Random) -> int:
    """Killed ``kills`` times, then left alone. Half of the instants are after start-up. Returns how often it hit."""
    first, whole = lifetime
    hits = 0
    for _ in range(kills):
        at = chance.uniform(0, whole) if chance.random() < 0.5 else chance.uniform(first, whole)
        ended = kill_at(start(*RUN, "OUT_DIR", folder), at)
        assert ended.code in (0, -signal.SIGKILL), ended
        hits += ended.code == -signal.SIGKILL
    ended = finish(start(*RUN, "OUT_DIR", folder))
    assert ended.code == 0 and "Traceback" not in ended.err and "damaged" not in ended.err, ended
    return hits


@pytest.mark.parametrize("seed", range(1))
def test_killed_at_random(undisturbed: Path, lifetime: tuple[float, float], tmp_path: Path, seed: int) -> None:
    killed_run(tmp_path, lifetime, 2 + seed, random.Random(f"{seed} {time.time()}"))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_runs_killed_at_random(undisturbed: Path, lifetime: tuple[float, float], tmp_path: Path) -> None:
    chance = random.Random(time.time())
    runs = hits = 0
    while runs < 20 or (hits < 20 and runs < 60):  # on a machine that has become quicker many come too late
        folder = tmp_path / str(runs)
        hits += killed_run(folder, lifetime, chance.randint(1, 3), chance)
        assert_same_run(folder, undisturbed)
        runs += 1
    assert hits >= 20


# --- every place where a kill could matter


@pytest.fixture(scope="session")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """A process that has everything imported and forks runs that die at their n-th change of the disk."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(FORK_SERVER)], text=True, env=env, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def run_until(crashes: "subprocess.Popen[str]", folder: Path, change: int, options: Sequence[str] = ()) -> tuple[int, int]:
    """(exit status, changes of the disk made). ``change`` -1 lets the run live."""
    assert crashes.stdin is not None and crashes.stdout is not None
    crashes.stdin.write(f"{change} {shlex.join([str(folder), *options])}\n")
    crashes.stdin.flush()
    status, changes = crashes.stdout.readline().split()
    return int(status), int(changes)


def check_crashes(
    crashes: "subprocess.Popen[str]", undisturbed: Path, tmp_path: Path, stride: int, options: Sequence[str] = ()
) -> None:
    status, changes = run_until(crashes, tmp_path / "whole", -1, options)
    assert status == 0 and changes > 40
    assert_same_run(tmp_path / "whole", undisturbed)
    for change in range(0, changes, stride):
        folder = tmp_path / str(change)
        assert run_until(crashes, folder, change, options)[0] == -signal.SIGKILL
        assert run_until(crashes, folder, -1, options)[0] == 0
        assert_same_run(folder, undisturbed)
        assert not list(folder.rglob("*.pycls-tmp"))


@pytest.fixture(scope="session")
def undisturbed_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed_stages") / "run"
    ended = call(*RUN, *TWO_STAGES, "OUT_DIR", folder)
    assert ended.code == 0, ended.err
    assert len(result(folder)["history"]) == 2 and len(result(folder)["stage1"]["history"]) == 1
    return folder


def test_killed_at_some_changes_of_the_disk(
    crashes: "subprocess.Popen[str]", undisturbed: Path, tmp_path: Path
) -> None:
    check_crashes(crashes, undisturbed, tmp_path, 19)


def test_two_stages_killed_at_some_changes_of_the_disk(
    crashes: "subprocess.Popen[str]", undisturbed_stages: Path, tmp_path: Path
) -> None:
    check_crashes(crashes, undisturbed_stages, tmp_path, 17, TWO_STAGES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stages", [1, 2])
def test_killed_at_every_change_of_the_disk(
    crashes: "subprocess.Popen[str]", undisturbed: Path, undisturbed_stages: Path, tmp_path: Path, stages: int
) -> None:
    whole, options = (undisturbed, ()) if stages == 1 else (undisturbed_stages, TWO_STAGES)
    check_crashes(crashes, whole, tmp_path, 1, options)
