"""Several processes: the same batches, exact counts, one end for all, and one message."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import simplejson
import torch
from running import (  # type: ignore[import-not-found]
    DIGITS,
    FAULTY,
    assert_same_run,
    call,
    finish,
    newest,
    result,
    samples,
    start,
)

from pycls.engine.checkpoint.state_file import load_weights
from pycls.runtime.log import read_json_stats

COUNTS = ("samples", "top1_errors", "topk_errors", "class_samples", "class_errors", "confusion")


def words(random_mnist: Path, folder: Path, *more: object) -> list[object]:
    """Two epochs of ten steps, tested on 10,007 images."""
    return [*DIGITS, "TRAIN.DATASET", "mnist", "MNIST.VAL_SIZE", 60, "DATA.ROOT", random_mnist, "TRAIN.BATCH_SIZE", 66,
            "OPTIM.MAX_EPOCH", 2, "TENSORBOARD", False, "LOG_SAMPLES", True, "LOG_PERIOD", 1, "OUT_DIR", folder,
            *more]  # fmt: skip


@pytest.fixture(scope="session")
def alone(random_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    ended = call(*words(random_mnist, folder))
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="session")
def pair(random_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two processes."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    ended = finish(start(*words(random_mnist, folder, "NUM_PROCS", 2), fresh=True))
    assert ended.code == 0, ended.err
    assert ended.err == "" and ended.out.count("tested on") == 1, ended
    return folder


def assert_same_counts(alone: Path, many: Path, random_mnist: Path, procs: int) -> None:
    """Of the same weights: what N processes count is what one counts."""
    weights = many / "model.safetensors"
    out = many.parent / "tested alone"
    ended = call("--mode", "test", *words(random_mnist, out, "TEST.WEIGHTS", weights))
    assert ended.code == 0, ended.err
    tested, ours = simplejson.loads((out / "test.json").read_text())["test"], result(many)["test"]
    assert ours["samples"] == 10_007 and sum(ours["class_samples"]) == 10_007 and sum(map(sum, ours["confusion"])) == 10_007
    assert {key: ours[key] for key in COUNTS} == {key: tested[key] for key in COUNTS}
    assert samples(many, procs) == samples(alone)
    assert len(samples(alone)) == 20 and len({i for step in range(10) for i in samples(alone)[step]}) == 660


def test_two_processes_see_the_same_batches_and_count_the_same(alone: Path, pair: Path, random_mnist: Path) -> None:
    assert_same_counts(alone, pair, random_mnist, 2)
    for ours, theirs in zip(result(pair)["history"], result(alone)["history"], strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], rel=1e-4)
        assert ours["model"]["samples"] == theirs["model"]["samples"] == 60


def test_three_processes(alone: Path, random_mnist: Path, tmp_path: Path) -> None:
    ended = finish(start(*words(random_mnist, tmp_path / "run", "NUM_PROCS", 3)))
    assert ended.code == 0, ended.err
    assert_same_counts(alone, tmp_path / "run", random_mnist, 3)


FIFTY = [*DIGITS, "IMPORTS", f"[{Path(__file__).with_name('precise.py')}]", "MODEL.TYPE", "precise", "TRAIN.BATCH_SIZE", 240,
         "OPTIM.MAX_EPOCH", 10, "TRAIN.EVAL_SPLIT", "none", "TENSORBOARD", False, "LOG_SAMPLES", True]  # fmt: skip
"""Fifty steps of LeNet, which has no batch norm, in float64: in float32 rounding grows to 3e-4 on the way."""


@pytest.mark.parametrize("procs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_does_not_depend_on_the_number_of_processes(tmp_path: Path, procs: int) -> None:
    """The order of the samples, each weight after fifty steps to 1e-6, and what is counted, to the integer."""
    for name, count in (("one", 1), ("many", procs)):
        ended = finish(start(*FIFTY, "NUM_PROCS", count, "OUT_DIR", tmp_path / name))
        assert ended.code == 0, ended
        assert newest(tmp_path / name)["epoch"] == 10
    seen = samples(tmp_path / "one")
    assert len(seen) == 50 and samples(tmp_path / "many", procs) == seen
    one, many = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("one", "many"))
    for key, weight in one.items():
        torch.testing.assert_close(many[key], weight, rtol=1e-6, atol=1e-12, msg=key)
    counts, theirs = (result(tmp_path / name)["test"] for name in ("one", "many"))
    assert counts["top1_errors"] > 0 and {key: theirs[key] for key in COUNTS} == {key: counts[key] for key in COUNTS}


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[str]") -> None:
    log = folder / "samples_rank0.txt"
    while not log.exists() or log.read_text().count("\n") <= step:
        assert process.poll() is None, finish(process)
        time.sleep(0.005)


def test_one_process_stops_at_ctrl_c_and_goes_on(alone: Path, random_mnist: Path, tmp_path: Path) -> None:
    command = words(random_mnist, tmp_path)
    process = start(*command)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130 and ended.err == "" and "the same command continues" in ended.out, ended
    state = newest(tmp_path)
    assert (state["epoch"], state["start"]) != (0, 0) and not (tmp_path / "result.json").exists()
    assert call(*command).code == 0
    assert_same_run(tmp_path, alone)
    assert samples(tmp_path) == samples(alone)


def test_two_processes_stop_and_go_on(pair: Path, random_mnist: Path, tmp_path: Path) -> None:
    command = words(random_mnist, tmp_path, "NUM_PROCS", 2)
    process = start(*command)
    wait_for_step(tmp_path, 3, process)
    process.terminate()
    ended = finish(process)
    assert ended.code == 143 and ended.err == "" and ended.out.count("the same command continues") == 1, ended
    ended = finish(start(*command))
    assert ended.code == 0 and "continuing from epoch" in ended.out, ended
    assert_same_run(tmp_path, pair)
    assert samples(tmp_path, 2) == samples(pair, 2)


def test_stopped_on_one_process_and_continued_on_two(alone: Path, random_mnist: Path, tmp_path: Path) -> None:
    command = words(random_mnist, tmp_path)
    process = start(*command)
    wait_for_step(tmp_path, 3, process)
    process.terminate()
    assert finish(process).code == 143
    state, done = newest(tmp_path), samples(tmp_path)
    first = state["epoch"] * 10 + state["start"]
    assert list(done) == list(range(first))
    (tmp_path / "samples_rank0.txt").unlink()
    ended = finish(start(*command, "NUM_PROCS", 2))
    assert ended.code == 0, ended
    rest = samples(tmp_path, 2)
    assert list(rest) == list(range(first, 20)) and done | rest == samples(alone)
    for ours, theirs in zip(result(tmp_path)["history"], result(alone)["history"], strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], rel=1e-4)
        assert ours["train"]["top1_err"] == pytest.approx(theirs["train"]["top1_err"], abs=0.5)


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs Linux's list of children")
def test_if_one_process_dies_all_end(random_mnist: Path, tmp_path: Path) -> None:
    process = start(*words(random_mnist, tmp_path, "NUM_PROCS", 2, "OPTIM.MAX_EPOCH", 10_000))
    wait_for_step(tmp_path, 3, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    began = time.monotonic()
    ended = finish(process, timeout=30)
    assert time.monotonic() - began < 30 and ended.code == 1
    first = ended.err.splitlines()[0]
    assert re.match(r"error: rank 1 of 2 on \S+ was killed by SIGKILL", first) and "Traceback" not in ended.err, ended.err
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_two_processes_make_one_line_of_an_error(tmp_path: Path) -> None:
    ended = finish(start(*DIGITS, "NUM_PROCS", 2, "MODEL.NUM_CLASSES", 3, "OUT_DIR", tmp_path))
    assert ended.code == 2 and re.fullmatch("error: NUM_CLASSES is 3.* at least 10\n", ended.err), ended
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_two_processes_name_the_whole_batch_of_a_bad_loss(tmp_path: Path) -> None:
    ended = finish(start(*DIGITS, "NUM_PROCS", 2, "OPTIM.BASE_LR", "1e30", "OUT_DIR", tmp_path))
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    found = re.search(r"the loss is \S+ at step 1 .* Sample ids of the batch: ([\d ]+)$", ended.err.strip())
    assert found is not None and len(set(found[1].split())) == 64, ended.err


def test_a_rank_that_hangs_ends_all(random_mnist: Path, tmp_path: Path) -> None:
    (tmp_path / "hang-1").touch()
    command = [*FAULTY, "NUM_PROCS", 2, "RUNTIME.TIMEOUT", 3, "OUT_DIR", tmp_path / "run"]
    began = time.monotonic()
    ended = finish(start(*command, FAULTS=str(tmp_path)))
    assert ended.code == 1 and time.monotonic() - began < 240
    assert re.fullmatch(r"error: rank 1 of 2 on \S+ hangs and was ended: rank 0 failed \(exit code 1\): another process "
                        r"did not answer for 3 s \(RUNTIME.TIMEOUT\)\n", ended.err), ended  # fmt: skip


@pytest.mark.slow
def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow-1").touch()
    ended = finish(start(*FAULTY, "NUM_PROCS", 2, "OUT_DIR", tmp_path / "run", FAULTS=str(tmp_path)))
    assert ended.code == 0 and re.match(r"warning: rank 1 \(\S+\) is a straggler: 0\.3", ended.err), ended
    rows = read_json_stats(tmp_path / "run" / "stdout.log", "own_time")
    assert len(rows) == 12 and all(row["rank"] == 1 and row["slowest"] > 2 * row["fastest"] for row in rows)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_torchrun(pair: Path, random_mnist: Path, tmp_path: Path) -> None:
    command = words(random_mnist, tmp_path)
    ended = finish(start(*command, launcher=TORCHRUN))
    assert ended.code == 0, ended
    assert_same_run(tmp_path, pair)
    assert samples(tmp_path, 2) == samples(pair, 2)


@pytest.mark.slow
def test_torchrun_says_that_a_run_is_finished_or_another(pair: Path, random_mnist: Path) -> None:
    ended = finish(start(*words(random_mnist, pair), launcher=TORCHRUN))
    assert ended.code == 0 and ended.out.count("is finished") == 1, ended
    ended = finish(start(*words(random_mnist, pair, "OPTIM.BASE_LR", 1.0), launcher=TORCHRUN))
    assert ended.code != 0 and "error: " in ended.err and "OPTIM.BASE_LR: 0.05 -> 1.0" in ended.err, ended
