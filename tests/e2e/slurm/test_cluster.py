"""Jobs of a real SLURM: they run to the end through requests to stop, and fail with their cause."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running import (  # type: ignore[import-not-found]
    FAULTY,
    ROOT,
    RUN_NET,
    Ended,
    assert_same_run,
    finish,
    last_step,
    newest,
    samples,
    start,
)

pytestmark = [pytest.mark.usefixtures("slurm"), pytest.mark.timeout(900)]
JOB = [*FAULTY, "NUM_PROCS", "2", "LAUNCH.MODE", "slurm", "LAUNCH.SIGNAL_DELAY", "30", "LAUNCH.MAX_RETRY", "1"]


def ask(*command: str) -> str:
    """A SLURM command's output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def submit(folder: Path, *more: object, **env: str) -> str:
    """The id of a job that was submitted and left alone."""
    ended = finish(start(*JOB, "OUT_DIR", folder, *more, **env))
    found = re.match(r"job (\d+): 1 x 2 processes; log \S+", ended.out)
    assert ended.code == 0 and found is not None, ended
    return found[1]


def wait_for(condition: Callable[[], bool], job: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, ask("scontrol", "show", "job", job)
        time.sleep(0.1)


def state(job: str) -> str:
    found = re.search(r"JobState=(\S+)", ask("scontrol", "show", "job", job))
    assert found is not None
    return found[1]


def go_on(job: str) -> None:
    """A job that is to be queued again waits two minutes by itself."""
    wait_for(lambda: state(job) == "PENDING", job)
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def log(folder: Path, job: str, rank: int = 0, kind: str = "out") -> str:
    return (folder / "submitit" / f"{job}_{rank}_log.{kind}").read_text()


def check_interrupted(folder: Path, reference: Path, *requests: tuple[str, ...]) -> None:
    """A job that is asked to queue again in the middle of an epoch, once in each, ends as if nothing had happened."""
    job = submit(folder)
    for epoch, request in enumerate(requests):
        wait_for(lambda step=10 * epoch + 1: last_step(folder) >= step, job)  # type: ignore[misc]
        ask(*request, job)
        go_on(job)
        assert newest(folder)["epoch"] == epoch and newest(folder)["start"] < 10
    wait_for(lambda: state(job) == "COMPLETED", job)
    assert_same_run(folder, reference)
    assert samples(folder, 2) == samples(reference, 2)
    for told in ("the same command continues", "continuing from epoch"):
        assert log(folder, job).count(told) == len(requests)


def test_asked_to_queue_again_it_ends_with_the_same_bits(undisturbed_pair: Path, tmp_path: Path) -> None:
    check_interrupted(tmp_path, undisturbed_pair, ("scancel", "--signal=USR2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "requests",
    [
        (("scontrol", "requeue"), ("scancel", "--signal=USR1")),
        (("scancel", "--signal=USR2"), ("scancel", "--signal=USR2", "--full")),
    ],
)
def test_asked_twice(undisturbed_pair: Path, tmp_path: Path, requests: tuple[tuple[str, ...], ...]) -> None:
    check_interrupted(tmp_path, undisturbed_pair, *requests)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["OPTIM.BASE_LRR", "1"], "did you mean OPTIM.BASE_LR"),
        (["MODEL.NUM_CLASSES", "3"], "NUM_CLASSES is 3"),
        (["HEAD.NAME", "cosface", "HEAD.SCALE", "-1"], "HEAD.SCALE: expected at least 0, found -1"),
        (["NUM_PROCS", "3", "MAX_GPUS_PER_NODE", "2", "TRAIN.BATCH_SIZE", "60"], "3 processes do not fill machines"),
        (["LAUNCH.PARTITION", "nosuch"], "sbatch refuses the job: .*invalid partition"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_submitted(tmp_path: Path, wrong: list[str], expected: str) -> None:
    before = ask("squeue", "-h", "-t", "all", "-o", "%i")
    ended = finish(start(*JOB, "OUT_DIR", tmp_path / "run", *wrong))
    assert ended.code == 2 and re.search(f"error: .*{expected}", ended.err), ended
    assert "Traceback" not in ended.err and ask("squeue", "-h", "-t", "all", "-o", "%i") == before


def waited(folder: Path, *more: object, **env: str) -> Ended:
    return finish(start("--wait", *JOB, "OUT_DIR", folder, *more, **env))


@pytest.mark.slow
def test_it_is_followed_to_the_end(undisturbed_pair: Path, tmp_path: Path) -> None:
    ended = waited(tmp_path)
    assert ended.code == 0 and "tested on" in ended.out and "epoch 3/3" in ended.out, ended
    assert_same_run(tmp_path, undisturbed_pair)
    again = waited(tmp_path)
    assert again.code == 0 and "is finished" in again.out and "job" not in again.out
    tested = waited(tmp_path, "--mode", "test")
    assert tested.code == 2, "flags come before options"
    tested = finish(start("--mode", "test", "--wait", *JOB, "OUT_DIR", tmp_path))
    assert tested.code == 0 and "top-1 error" in tested.out and (tmp_path / "test.json").exists(), tested


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise-1", r"error: rank 1 of 2 on \S+ failed: LookupError: no such sample: 17\n"),
        ("hang-1", r"error: rank 0 of 2 on \S+ failed: another process did not answer for 4 s \(RUNTIME.TIMEOUT\)\n"),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_is_named(tmp_path: Path, fault: str, expected: str) -> None:
    (tmp_path / fault).touch()
    began = time.monotonic()
    ended = waited(tmp_path / "run", "RUNTIME.TIMEOUT", 4, FAULTS=str(tmp_path))
    assert time.monotonic() - began < 240 and ended.code == 1 and re.search(expected + "$", ended.err), ended
    first = re.search(r"lost another process: .*", ended.err)
    assert first is not None and (fault == "hang-1" or "the cause: rank 1 of 2" in first[0]), ended.err


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job(tmp_path: Path) -> None:
    process = start("--wait", *JOB, "OUT_DIR", tmp_path)
    while last_step(tmp_path) < 3:
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-f", f"submitit.core._submit {tmp_path}"], capture_output=True, text=True).stdout
    ask("kill", "-KILL", max(found.split(), key=int))
    ended = finish(process)
    assert ended.code == 1 and re.search(r"srun: error: \S+: task \d: Killed", ended.err), ended


@pytest.mark.slow
def test_after_too_many_time_outs_it_ends(tmp_path: Path) -> None:
    """A limit of a few minutes is near from the start, so that submitit takes each request for a time-out."""
    limits = ["LAUNCH.TIME_LIMIT", "5", "LAUNCH.MAX_RETRY", "0"]
    job = submit(tmp_path, *limits)
    wait_for(lambda: last_step(tmp_path) > 3, job)
    ask("scancel", "--signal=USR2", job)
    wait_for(lambda: state(job) == "FAILED", job)
    assert "LAUNCH.MAX_RETRY time-outs" in log(tmp_path, job, kind="err")
    shown = ask("scontrol", "show", "job", job)  # of the tasks' codes the largest: srun may end rank 1 by SIGTERM
    assert "ExitCode=140:0" in shown or "ExitCode=143:0" in shown


@pytest.mark.slow
def test_cancelled_it_saves(tmp_path: Path) -> None:
    job = submit(tmp_path)
    wait_for(lambda: last_step(tmp_path) > 3, job)
    ask("scancel", job)
    wait_for(lambda: state(job) == "CANCELLED", job)
    wait_for(lambda: "the same command continues" in log(tmp_path, job), job)
    assert newest(tmp_path)["start"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["srun", "-n", "2"], ["srun", "-n", "1"]])
def test_within_a_users_own_srun(undisturbed_pair: Path, tmp_path: Path, launcher: list[str]) -> None:
    """Two tasks are the run's two processes; one task starts two."""
    ended = finish(start(*FAULTY, "NUM_PROCS", "2", "OUT_DIR", tmp_path, launcher=[*launcher, sys.executable]))
    assert ended.code == 0 and ended.out.count("tested on") == 1, ended
    assert_same_run(tmp_path, undisturbed_pair)


@pytest.mark.slow
def test_in_a_users_own_batch_script(undisturbed_pair: Path, tmp_path: Path) -> None:
    """SIGUSR1 before the limit, and the script queues again by the exit code: docs/launching.md's."""
    words = " ".join(map(str, [*FAULTY, "NUM_PROCS", "2", "OUT_DIR", tmp_path / "run"]))
    script = tmp_path / "job.sh"
    script.write_text(f"""#!/bin/bash
#SBATCH --ntasks=2 --requeue --output={tmp_path}/log --open-mode=append
srun {sys.executable} {RUN_NET} {words}
code=$?
[ $code = 138 ] && scontrol requeue $SLURM_JOB_ID
exit $code
""")
    job = ask("sbatch", "--parsable", f"--chdir={ROOT}", str(script)).strip()
    wait_for(lambda: last_step(tmp_path / "run") > 3, job)
    ask("scancel", "--signal=USR1", job)
    go_on(job)
    wait_for(lambda: state(job) == "COMPLETED", job)
    assert_same_run(tmp_path / "run", undisturbed_pair)


@pytest.mark.slow
def test_a_trial_on_this_machine(undisturbed_pair: Path, tmp_path: Path) -> None:
    ended = finish(start(*JOB, "OUT_DIR", tmp_path, "LAUNCH.MODE", "submitit_local"))
    assert ended.code == 0 and "tested on" in ended.out, ended
    assert_same_run(tmp_path, undisturbed_pair)
    (tmp_path / "raise-1").touch()
    failed = finish(start(*JOB, "OUT_DIR", tmp_path / "x", "LAUNCH.MODE", "submitit_local", FAULTS=str(tmp_path)))
    assert failed.code == 1 and re.search(r"error: rank 1 of 2 on \S+ failed: LookupError: .* 17\n$", failed.err), failed
