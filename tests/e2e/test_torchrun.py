"""Under torchrun: workers are killed at random, and the run ends as if nothing had happened, or says what did."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import FAULTY, assert_same_run, finish, last_step, samples, start  # type: ignore[import-not-found]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def workers_of(pid: int) -> list[int]:
    """The processes of torchrun's that train, as far as they have come to that."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"run_net.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill_at_random(process: "subprocess.Popen[str]", folder: Path, kills: int, seed: float) -> None:
    """SIGKILL to one of the two workers, at any place from the first step on, so many times."""
    chance = random.Random(seed)
    for _ in range(kills):
        (folder / "samples_rank0.txt").unlink(missing_ok=True)
        while last_step(folder) < 0:
            assert process.poll() is None, finish(process)
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.6))
        workers = workers_of(process.pid)
        os.kill(chance.choice(workers), signal.SIGKILL)
        while set(workers) & set(workers_of(process.pid)):  # the other one may go on for a step
            time.sleep(0.02)


def check_killed(folder: Path, reference: Path, kills: int) -> None:
    seed = time.time()
    options = ["TRAIN.CHECKPOINT_STEPS", 2, "OUT_DIR", folder]
    process = start(*FAULTY, *options, launcher=[*TORCHRUN, "--max-restarts", str(kills)], FAULTS="/nowhere")
    kill_at_random(process, folder, kills, seed)
    ended = finish(process)
    assert ended.code == 0, (seed, ended)
    assert ended.out.count("tested on") == 1
    assert_same_run(folder, reference, same_steps=False)


def test_one_kill(undisturbed_pair: Path, tmp_path: Path) -> None:
    check_killed(tmp_path, undisturbed_pair, 1)
    assert samples(tmp_path, 2) == samples(undisturbed_pair, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills(undisturbed_pair: Path, tmp_path: Path) -> None:
    check_killed(tmp_path, undisturbed_pair, 10)


@pytest.mark.slow
def test_without_restarts_all_end_and_the_cause_is_named(tmp_path: Path) -> None:
    process = start(*FAULTY, "OUT_DIR", tmp_path, launcher=TORCHRUN)
    while last_step(tmp_path) < 2:
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
    workers = workers_of(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    began = time.monotonic()
    ended = finish(process, timeout=30)
    assert time.monotonic() - began < 30 and ended.code != 0
    assert "SIGKILL" in ended.err and re.search(r"lost another process: the process at \S+ is gone", ended.err), ended
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_an_option_starts_it(undisturbed_pair: Path, tmp_path: Path) -> None:
    process = start(*FAULTY, "NUM_PROCS", 2, "LAUNCH.MODE", "torchrun", "TRAIN.CHECKPOINT_STEPS", 2, "OUT_DIR", tmp_path)
    kill_at_random(process, tmp_path, 1, 0.0)
    ended = finish(process)
    assert ended.code == 0, ended
    assert_same_run(tmp_path, undisturbed_pair, same_steps=False)
