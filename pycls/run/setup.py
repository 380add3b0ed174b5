"""What every mode does first: locks the folder, joins the processes, chooses the device, and finds the run to continue."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import yaml
from yacs.config import CfgNode

from pycls import config
from pycls.class_names import shown
from pycls.engine.checkpoint.checkpoints import Checkpoints
from pycls.errors import InputError
from pycls.runtime.devices import choose_device, set_deterministic, set_threads
from pycls.runtime.distributed import Ranks, destroy, init_process_group_from_env, ranks_from_env
from pycls.runtime.files import RunLock
from pycls.runtime.memory import keep_freed_memory
from pycls.runtime.worker import LAUNCHER_PID, SUBMITTED, is_worker

CONFIG_FILE = "config.yaml"


def is_launched() -> bool:
    """Whether this is a worker of our own launcher, which holds the lock and has looked at OUT_DIR."""
    return LAUNCHER_PID in os.environ


def processes_to_launch(cfg: CfgNode) -> int:
    """How many workers this process has to start; 0 if it does the work itself. It leaves the GPUs alone."""
    if is_worker() or SUBMITTED in os.environ:
        return 0
    count = _processes_here(cfg)
    return count if count > 1 else 0


def _processes_here(cfg: CfgNode) -> int:
    on_gpus = cfg.DEVICE in ("auto", "cuda") and torch.cuda.is_available()
    return int(cfg.NUM_GPUS if on_gpus else cfg.NUM_PROCS)


def become_torchrun(cfg: CfgNode) -> NoReturn:
    """Replace this process by torchrun with the same command line, which restarts the workers when one dies."""
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    flags = [f"--nproc-per-node={_processes_here(cfg)}", f"--max-restarts={cfg.LAUNCH.MAX_RETRY}"]
    os.execv(sys.executable, [*module, *flags, *sys.argv])


@contextlib.contextmanager
def claim(out_dir: Path) -> Iterator[None]:
    """Exclusive use of OUT_DIR for the run's first process, of rank 0 or the one that launches the workers."""
    if is_launched() or ranks_from_env().rank > 0:
        yield
    else:
        with RunLock(out_dir):
            yield


@contextlib.contextmanager
def process_group(cfg: CfgNode) -> Iterator[tuple[torch.device, Ranks]]:
    """This process's device and rank, with threads, memory and determinism set, among the others of the run."""
    ranks = ranks_from_env()
    device = choose_device(cfg.DEVICE, ranks.local_rank)
    set_threads(cfg.NUM_THREADS, ranks.local_world_size)
    if device.type == "cpu":
        keep_freed_memory()
    set_deterministic(device, cfg.DETERMINISTIC, cfg.CUDNN.BENCHMARK)
    ranks = init_process_group_from_env(device, cfg.RUNTIME.TIMEOUT)
    try:
        yield device, ranks
    finally:
        destroy()


def checkpoints(cfg: CfgNode) -> Checkpoints:
    """Those of the run in OUT_DIR."""
    return Checkpoints(Path(cfg.OUT_DIR) / "checkpoints", cfg.TRAIN.CHECKPOINT_KEEP, cfg.RUNTIME.TIMEOUT)


def refuse_other_config(cfg: CfgNode) -> None:
    """Raises InputError if OUT_DIR has checkpoints that this configuration would not continue."""
    written = Path(cfg.OUT_DIR) / CONFIG_FILE
    if not checkpoints(cfg).steps() or not written.is_file():
        return
    if not cfg.TRAIN.AUTO_RESUME:
        raise InputError(f"{cfg.OUT_DIR} holds a run, and TRAIN.AUTO_RESUME is off: give another OUT_DIR, or remove it")
    # the modules of IMPORTS may have moved since: those given now are the ones that count
    old = config.load(str(written), [f"IMPORTS={json.dumps(list(cfg.IMPORTS))}"], notify=lambda line: None)  # said already
    changes = config.difference(old, cfg)
    if changes:
        raise InputError(f"{cfg.OUT_DIR} holds a run of another configuration; give another OUT_DIR. "
                         f"The difference (its -> yours): {'; '.join(changes)}")  # fmt: skip


def refuse_other_data(cfg: CfgNode, written: str) -> None:
    """Raises InputError if the training set is not the one that a checkpoint, by its configuration's text, was begun with."""
    try:
        before = str(yaml.safe_load(written)["DATA"].get("HASH", ""))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{checkpoints(cfg).folder}: the entry config of the newest checkpoint is no configuration; it should "
                         f"be the text of {CONFIG_FILE}") from None  # fmt: skip
    if before != cfg.DATA.HASH:
        raise InputError(f"{cfg.OUT_DIR} holds a run on another training set (its files have changed since): its DATA.HASH is "
                         f"{before or 'empty'}, now it is {cfg.DATA.HASH or 'empty'}; give another OUT_DIR")  # fmt: skip


def refuse_other_classes(cfg: CfgNode, before: Sequence[str] | None, now: Sequence[str]) -> None:
    """Raises InputError if the training set's classes are not those that a checkpoint names, in their order."""
    if before is None or list(before) == list(now):
        return
    if len(before) == len(now):
        change = next(f"class {k} was {old!r} and is {new!r}" for k, (old, new) in enumerate(zip(before, now, strict=True))
                      if old != new)  # fmt: skip
    else:
        change = f"there were {len(before)} ({shown(before)}), and there are {len(now)} ({shown(now)})"
    raise InputError(f"{cfg.OUT_DIR} holds a run on other classes: {change}; give another OUT_DIR")


def best_in(cfg: CfgNode) -> Path:
    """The best checkpoint in OUT_DIR, the newest where none was chosen. Raises InputError if there is none at all."""
    found = checkpoints(cfg)
    best, steps = found.best(), found.steps()
    if best is None and not steps:
        raise InputError(f"no checkpoint in {found.folder}; give TEST.WEIGHTS, or the OUT_DIR of a run")
    return best or found.path(steps[-1])
