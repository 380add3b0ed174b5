"""Runs of the whole program: in this process where that is enough, as real processes where it is the point."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
import torch
from forked import Process  # type: ignore[import-not-found]

from pycls import cli
from pycls.engine.checkpoint.state_file import load_state

ROOT = Path(__file__).parents[2]
RUN_NET = ROOT / "tools" / "run_net.py"
DIGITS = ["--cfg", str(ROOT / "configs/digits/lenet5_softmax.yaml"), "DEVICE", "cpu", "NUM_THREADS", "1"]
FAULTY = [*DIGITS, "IMPORTS", f"[{Path(__file__).with_name('faulty.py')}]", "MODEL.TYPE", "faulty", "TRAIN.BATCH_SIZE", "120",
          "OPTIM.MAX_EPOCH", "3", "LOG_PERIOD", "3", "LOG_SAMPLES", "True", "TENSORBOARD", "False"]  # fmt: skip
"""Three epochs of ten steps of at least 100 ms each, which fail on request (faulty.py)."""


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def call(*words: object) -> Ended:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    deterministic, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    handlers = list(logging.getLogger().handlers)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(word) for word in words])
    finally:
        torch.set_deterministic_debug_mode(deterministic)
        torch.set_num_threads(threads)
        for handler in [h for h in logging.getLogger().handlers if h not in handlers]:
            logging.getLogger().removeHandler(handler)
            handler.close()
    return Ended(code, out.getvalue(), err.getvalue())


def start(
    *words: object, launcher: list[str] | None = None, fresh: bool = False, **env: str
) -> "subprocess.Popen[str]":
    """The command line as a separate process; a ``fresh`` one imports torch itself, as do those of another launcher."""
    command = [*(launcher or [sys.executable]), str(RUN_NET), *map(str, words)]
    kind = subprocess.Popen if fresh or launcher else Process
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    return kind(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**clean, "OMP_NUM_THREADS": "1", **env})  # fmt: skip


def finish(process: "subprocess.Popen[str]", timeout: float = 200) -> Ended:
    """Waits for its end."""
    out, err = process.communicate(timeout=timeout)
    return Ended(process.returncode, out, err)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative path, but for the lock, which says who came last."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def result(folder: Path) -> dict[str, Any]:
    """The run's result.json."""
    return dict(simplejson.loads((folder / "result.json").read_text()))


def newest(folder: Path) -> dict[str, Any]:
    """The run's last checkpoint."""
    return load_state(max((folder / "checkpoints").glob("step_*.safetensors")))


def assert_same_run(folder: Path, reference: Path, same_steps: bool = True) -> None:
    """Both ended with the same weights, moving average, optimiser, metrics and test, bit by bit; where ``same_steps``,
    with checkpoints of the same steps."""
    for name in ("best", "step"):
        ours, theirs = (sorted((f / "checkpoints").glob(f"{name}*.safetensors")) for f in (folder, reference))
        assert ours[-1].name == theirs[-1].name
        assert not same_steps or [p.name for p in ours] == [p.name for p in theirs]
        assert_same_tree(*({k: v for k, v in load_state(paths[-1]).items() if k != "config"} for paths in (ours, theirs)))
    assert result(folder) == result(reference)
    if (reference / "stage2").exists():
        assert_same_tree(*({k: v for k, v in newest(f / "stage2").items() if k != "config"} for f in (folder, reference)))


def assert_same_tree(ours: Any, theirs: Any, place: str = "") -> None:
    """Equal trees of tensors and plain values."""
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), place
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key in theirs:
            assert_same_tree(ours[key], theirs[key], f"{place}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_tree(a, b, f"{place}/{i}")
    else:
        assert ours == theirs, place


def samples(folder: Path, ranks: int = 1) -> dict[int, list[int]]:
    """Step -> ids of its global batch, as LOG_SAMPLES wrote them; of a step done twice the last."""
    of_rank = []
    for rank in range(ranks):
        lines = (folder / f"samples_rank{rank}.txt").read_text().splitlines()
        of_rank.append({int(k): list(map(int, ids.split())) for k, ids in (line.split(": ") for line in lines)})
    assert all(steps.keys() == of_rank[0].keys() for steps in of_rank)
    return {step: [i for steps in of_rank for i in steps[step]] for step in of_rank[0]}


def last_step(folder: Path) -> int:
    """The step that rank 0 has begun last, from 0; -1 before the first."""
    log = folder / "samples_rank0.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return int(lines[-1].partition(":")[0]) if lines else -1


def write_mnist(root: Path, train: int, test: int, side: int = 8) -> None:
    """Random images in MNIST's files."""
    random = np.random.default_rng(7)
    folder = root / "MNIST"
    folder.mkdir(parents=True)
    for part, size in (("train", train), ("t10k", test)):
        for kind, array in (("images-idx3", random.integers(0, 256, (size, side, side))),
                            ("labels-idx1", random.integers(0, 10, size))):  # fmt: skip
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
