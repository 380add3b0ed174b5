"""The checkpoints of a run: the newest few and the best, and which one to continue from."""

import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pycls.engine.sharded import cutter, joiner
from pycls.engine.snapshot import Snapshot, take
from pycls.engine.state_file import load_state, write_snapshot
from pycls.errors import DamagedFile, InputError
from pycls.runtime.files import atomic_link

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
_NAME = re.compile(r"step_(\d{9})\.safetensors")


class Checkpoints:
    """The checkpoints in ``folder``: ``step_000001234.safetensors`` and ``best.safetensors``.

    A context manager: at its end the last one is whole.

    Args:
        folder: created when the first one is saved.
        keep: how many of the newest are kept, besides the best.
    """

    def __init__(self, folder: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep
        self._memory: dict[str, Tensor] = {}
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """The optimiser steps after which there is a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for m in map(_NAME.fullmatch, os.listdir(self.folder)) if m)

    def path(self, step: int) -> Path:
        """File of the checkpoint after ``step`` optimiser steps."""
        return self.folder / f"step_{step:09d}.safetensors"

    def save(self, step: int, state: Mapping[str, Any], best: bool) -> None:
        """Copies the state, which may then change again, and has a thread of its own write it durably, then let
        ``best.safetensors`` be this one too if it is, then remove the oldest. Waits first for the one before.

        Raises:
            RunError: the disk refused the one before. Older checkpoints are intact.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, step, take(state, self._memory), best)

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises RunError if the disk refuses it; older checkpoints are intact."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def raise_error(self) -> None:
        """Raises RunError if the disk has refused what was saved; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def _write(self, step: int, snapshot: Snapshot, best: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_snapshot(self.path(step), snapshot)
        if best:
            self.link_best(step)
        self.prune(step)

    def prune(self, step: int) -> None:
        """Removes all but the newest few up to ``step``, the present one."""
        steps = self.steps()
        newest = [known for known in steps if known <= step][-self.keep :]  # later ones are damaged: this run got round them
        for old in set(steps) - set(newest):
            self.path(old).unlink()

    def link_best(self, step: int) -> None:
        """Lets the checkpoint after ``step`` be the best one. Raises RunError if the disk refuses."""
        atomic_link(self.path(step), self.folder / BEST)

    def newest(self, loud: bool = True) -> dict[str, Any] | None:
        """The newest sound checkpoint; None if there is none at all. A damaged one is passed over.

        Args:
            loud: whether to log that (in one of several processes).

        Raises:
            InputError: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return load_state(self.path(step))
            except DamagedFile as error:
                if loud:
                    logger.error("%s; going back to the checkpoint before it", error)
        if steps:
            raise InputError(f"every checkpoint in {self.folder} is damaged; start again in another OUT_DIR")
        return None

    def best(self) -> Path | None:
        """The best checkpoint's file, if there is one."""
        return self.folder / BEST if (self.folder / BEST).is_file() else None


def model_state(model: nn.Module, everywhere: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole where each process has a part; all processes call it.

    Args:
        model: the model.
        everywhere: whether every process wants the whole, or only rank 0 (:func:`pycls.engine.sharded.joiner`).
    """
    join = joiner(model, everywhere)
    return {name: join(name, value) for name, value in model.state_dict().items()}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies weights into a model that has exactly these, or this process's part of them.

    Raises:
        InputError: names or shapes differ: the weights are another model's.
    """
    cut = cutter(model)
    own, state = model.state_dict(), {name: cut(name, value) for name, value in state.items()}
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{n} is {list(state[n].shape)}, not {list(own[n].shape)}" for n in own.keys() & state.keys()
              if state[n].shape != own[n].shape]  # fmt: skip
    if missing or extra or shapes:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}" if extra else f"its {sorted(shapes)[0]}"
        count = len(missing) + len(extra) + len(shapes)
        raise InputError(f"{source} holds the weights of another model: {count} names or shapes differ ({what})")
    model.load_state_dict(state)


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, everywhere: bool = True
) -> dict[str, dict[str, Any]]:
    """The optimiser's state by parameter name, joined as by :func:`model_state`."""
    join = joiner(model, everywhere)
    return {
        name: {key: join(name, value) if isinstance(value, Tensor) else value for key, value in values.items()}
        for name, parameter in model.named_parameters()
        if (values := optimizer.state.get(parameter))
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Restores what :func:`optimizer_state` gave."""
    parameters, cut = dict(model.named_parameters()), cutter(model)
    for name, values in state.items():
        parameter = parameters[name]
        restored = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                # fused optimisers keep the step counter as float32 on the parameter's device, and moments in its layout
                value = cut(name, value).to(parameter.device)
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value
            restored[key] = value
        optimizer.state[parameter] = restored
