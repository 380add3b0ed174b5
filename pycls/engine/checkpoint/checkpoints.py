"""The checkpoints of a run: the newest few and the best, and which one to continue from."""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.sharded import Where, first_found, gather_fn, shard_fn, whole_shapes
from pycls.engine.checkpoint.sharded_rows import ShardedRows
from pycls.engine.checkpoint.snapshot import Snapshot, take
from pycls.engine.checkpoint.state_file import load_state, parts_of, write_part, write_snapshot
from pycls.errors import DamagedFile, InputError, RunError
from pycls.runtime.distributed import Ranks, broadcast_object
from pycls.runtime.files import atomic_link
from pycls.runtime.report import is_lost_peer

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
_NAME = re.compile(r"step_(\d{9})\.safetensors")
_PART_NAME = re.compile(r"part_\d{9}_[0-9a-f]{8}_\d+_of_\d+\.safetensors")
_POLL_S = 0.02
_ALONE = Ranks()


class Checkpoints:
    """The checkpoints in ``folder``: ``step_000001234.safetensors`` and ``best.safetensors``.

    Of a sharded state each process writes its part, ``part_000001234_<tag>_<rank>_of_<processes>.safetensors``, where
    the tag is of this one attempt to save; when all parts are there, rank 0 writes the file that names them. Before that there
    is no checkpoint, and afterwards nothing of it changes any more.

    A context manager: at its end the last one is whole, unless another process was lost.

    Args:
        folder: created when the first one is saved.
        keep: how many of the newest are kept, besides the best.
        timeout_s: seconds that rank 0 waits for others' parts after its own.
    """

    def __init__(self, folder: str | Path, keep: int, timeout_s: float = 600.0) -> None:
        self.folder, self.keep, self.timeout_s = Path(folder), keep, timeout_s
        self._alone = threading.Event()
        self._memory: dict[str, Tensor] = {}
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and is_lost_peer(error):
            self._alone.set()
        self.wait()

    def steps(self) -> list[int]:
        """The optimiser steps after which there is a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for m in map(_NAME.fullmatch, os.listdir(self.folder)) if m)

    def path(self, step: int) -> Path:
        """File of the checkpoint after ``step`` optimiser steps."""
        return self.folder / f"step_{step:09d}.safetensors"

    def save(
        self, step: int, state: Mapping[str, Any], best: bool, ranks: Ranks = _ALONE, finite: Collection[str] = (),
        check: Callable[[str | None], None] | None = None,
    ) -> None:  # fmt: skip
        """Copies the state, which may then change again, and has a background thread write it durably, then let
        ``best.safetensors`` be this one too if it is, then remove the oldest. Waits first for the one before.

        Args:
            step: optimiser steps so far.
            state: the tree.
            best: whether it is the best one so far.
            ranks: this process's among those that save the state together, which all call this: each writes its
                :class:`pycls.engine.checkpoint.snapshot.LocalShard` of the tensors, and rank 0 the others.
            finite: the places in the tree of what should be finite.
            check: called with the place of one that is not, or None; nothing is written if it raises.

        Raises:
            RunError: the disk refused the one before. Older checkpoints are intact.
        """
        self.wait()
        snapshot, parts = take(state, self._memory, shards_only=not ranks.is_main, finite=finite), []
        if check is not None:
            check(snapshot.bad)
        if snapshot.shards:
            tag = broadcast_object(secrets.token_hex(4))
            parts = [self.folder / f"part_{step:09d}_{tag}_{rank}_of_{ranks.world_size}.safetensors"
                     for rank in range(ranks.world_size)]  # fmt: skip
        self._pending = self._writer.submit(self._write, step, snapshot, best, ranks, parts)

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises RunError if the disk refuses it; older checkpoints are intact."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def raise_error(self) -> None:
        """Raises RunError if the disk has refused what was saved; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def _write(self, step: int, snapshot: Snapshot, best: bool, ranks: Ranks, parts: Sequence[Path]) -> None:
        """In a thread: it must not communicate, which the training does at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if parts:
            write_part(parts[ranks.rank], snapshot.shards)
        if not ranks.is_main or not self._are_there(parts):
            return
        write_snapshot(self.path(step), snapshot, parts)
        if best:
            self.link_best(step)
        self.prune(step)

    def _are_there(self, parts: Sequence[Path]) -> bool:
        """Waits for the other processes' parts, which are renamed into place; False if a process has been lost meanwhile."""
        deadline = time.monotonic() + self.timeout_s
        while missing := sorted({part.name for part in parts} - set(os.listdir(self.folder))):
            if self._alone.is_set():
                return False
            if time.monotonic() > deadline:
                raise RunError(f"the checkpoint is incomplete: no process wrote {self.folder / missing[0]} within "
                               f"{self.timeout_s:.0f} s (RUNTIME.TIMEOUT)")  # fmt: skip
            self._alone.wait(_POLL_S)
        return True

    def prune(self, step: int) -> None:
        """Removes all but the newest few up to ``step``, the present one, and every part that none of them nor the best one
        needs."""
        steps = self.steps()
        newest = [known for known in steps if known <= step][-self.keep :]  # later ones are damaged: this run got round them
        for old in set(steps) - set(newest):
            self.path(old).unlink()
        names = os.listdir(self.folder) if steps else []
        if parts := set(filter(_PART_NAME.fullmatch, names)):
            for path in (*map(self.path, newest), self.folder / BEST):
                parts -= set(parts_of(path))
            for name in parts:
                (self.folder / name).unlink()

    def link_best(self, step: int) -> None:
        """Lets the checkpoint after ``step`` be the best one. Raises RunError if the disk refuses."""
        atomic_link(self.path(step), self.folder / BEST)

    def newest(
        self, ranks: Ranks = _ALONE, check: Callable[[dict[str, Any], str], None] | None = None
    ) -> dict[str, Any] | None:
        """The newest sound checkpoint, as :func:`load_together` reads it; None if there is none at all. A damaged one is
        passed over, of which rank 0 logs a line.

        Args:
            ranks: of this process.
            check: called with the state and its file; what it raises ends the search.

        Raises:
            InputError: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = load_together(self.path(step), ranks)
            except DamagedFile as error:
                if ranks.is_main:
                    logger.error("%s; going back to the checkpoint before it", error)
                continue
            if check is not None:
                check(state, str(self.path(step)))
            return state
        if steps:
            raise InputError(f"every checkpoint in {self.folder} is damaged; start again in another OUT_DIR")
        return None

    def best(self) -> Path | None:
        """The best checkpoint's file, if there is one."""
        return self.folder / BEST if (self.folder / BEST).is_file() else None


def load_together(path: Path, ranks: Ranks) -> dict[str, Any]:
    """A checkpoint, in all processes, each of which verifies some of its parts; what is sharded is a
    :class:`pycls.engine.checkpoint.sharded_rows.ShardedRows`.

    Raises:
        DamagedFile: it is damaged, as one of the processes has found. All of them raise it.
    """
    state, damage = {}, None
    try:
        state = load_state(path, whole=False, share=(ranks.rank, ranks.world_size))
    except DamagedFile as error:
        damage = str(error)
    damage = first_found(damage)
    if damage is not None:
        raise DamagedFile(damage)
    return state


def model_state(model: nn.Module, where: Where = "everywhere") -> dict[str, Any]:
    """Parameters and buffers by name; all processes call it. What is sharded is gathered, or not, as
    :func:`pycls.engine.checkpoint.sharded.gather_fn` says."""
    gather = gather_fn(model, where)
    return {name: gather(name, value) for name, value in model.state_dict().items()}


def check_model_state(model: nn.Module, state: Mapping[str, Tensor | ShardedRows], source: str) -> None:
    """Raises InputError unless the model has exactly these names and shapes: else the weights are another model's."""
    own = whole_shapes(model)
    for name in _optional(model) - state.keys():
        del own[name]
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{n} is {list(state[n].shape)}, not {list(own[n])}" for n in own.keys() & state.keys()
              if state[n].shape != own[n]]  # fmt: skip
    if missing or extra or shapes:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}" if extra else f"its {sorted(shapes)[0]}"
        count = len(missing) + len(extra) + len(shapes)
        raise InputError(f"{source} holds the weights of another model: {count} names or shapes differ ({what})")


def load_model_state(model: nn.Module, state: Mapping[str, Tensor | ShardedRows], source: str) -> None:
    """Copies weights into a model that has exactly these, or this process's shard of them, one after another.

    Raises:
        InputError: names or shapes differ: the weights are another model's.
    """
    check_model_state(model, state, source)
    shard, optional = shard_fn(model), _optional(model)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in state or name not in optional:
                value.copy_(shard(name, state[name]))


def _optional(model: nn.Module) -> set[str]:
    """Entries that files of older versions lack, and that a module can do without (its ``optional_state``)."""
    named = {
        f"{prefix}.{name}" for prefix, module in model.named_modules() for name in getattr(module, "optional_state", ())
    }
    return named & model.state_dict().keys()


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, where: Where = "everywhere"
) -> dict[str, dict[str, Any] | None]:
    """The optimiser's state by the name of each trained parameter, gathered as by :func:`model_state`; None where it has none,
    as of a parameter that has had no gradient yet."""
    gather = gather_fn(model, where)

    def gathered(name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        state = {key: gather(name, value) if isinstance(value, Tensor) else value for key, value in values.items()}
        return state or None

    return {
        name: gathered(name, optimizer.state.get(parameter, {}))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Restores what :func:`optimizer_state` gave."""
    parameters, shard = dict(model.named_parameters()), shard_fn(model)
    for name, values in state.items():
        if values is None:
            continue
        parameter = parameters[name]
        restored = {}
        for key, value in values.items():
            if isinstance(value, Tensor | ShardedRows):
                # fused optimisers keep the step counter as float32 on the parameter's device, and moments in its layout
                value = shard(name, value).to(parameter.device)
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value
            restored[key] = value
        optimizer.state[parameter] = restored
