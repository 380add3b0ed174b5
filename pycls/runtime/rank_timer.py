"""How fast each process is: which one is a straggler, and how often they can afford to agree on a stop.

In a step all processes wait for the slowest, so the time of a step is the same in all of them. What tells them apart is
the time that each needs for itself: to get its batch, and in the model's forward pass, which exchanges nothing.
"""

import socket
import time
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import nn

from pycls.runtime.distributed import Ranks, gather_objects

STOP_CHECK_S = 1.0
"""Seconds between two agreements on a stop, unless a step is longer or a log period shorter."""

STRAGGLER_RATIO = 1.5
"""A process is a straggler if it needs this many times the median's own time ..."""

STRAGGLER_MIN_S = 0.02
"""... and this many seconds a step more: other load on a machine varies short steps by as much."""


@dataclass(frozen=True)
class Spread:
    """The processes' own times, in seconds a step.

    Attributes:
        fastest: the least.
        middle: their median, of two processes the faster one's.
        slowest: the largest.
        rank: whose that is.
        host: on which machine.
    """

    fastest: float
    middle: float
    slowest: float
    rank: int
    host: str

    @property
    def is_straggler(self) -> bool:
        """Whether the slowest is so much slower than the median that the others wait for it."""
        return self.slowest > STRAGGLER_RATIO * self.middle and self.slowest - self.middle > STRAGGLER_MIN_S


class RankTimer:
    """Times the steps of this process; in a run of one process it does nothing.

    Args:
        model: the classifier, whose forward pass is timed in training mode (not DDP's, which exchanges buffers).
        device: where it computes; on a GPU its own clock is read, and only when :meth:`read` is called.
        ranks: this process among its peers.
        log_period: steps between two calls of :meth:`read`.
    """

    def __init__(self, model: nn.Module, device: torch.device, ranks: Ranks, log_period: int) -> None:
        self.ranks, self.log_period, self.on_gpu = ranks, log_period, device.type == "cuda"
        self.stop_period = 1
        self._spans: list[tuple[Any, Any]] = []
        self._open: Any = None
        self._began, self._steps = time.perf_counter(), 0
        if ranks.world_size > 1:
            model.register_forward_pre_hook(lambda module, _: self._start() if module.training else None)
            model.register_forward_hook(lambda module, _, __: self._stop() if module.training else None)

    def begin_epoch(self) -> None:
        """An epoch begins: what came before it (an evaluation) is none of a step's time."""
        self._spans.clear()
        self._began, self._steps = time.perf_counter(), 0
        self._start()

    def batch_ready(self) -> None:
        """This process has its batch: a step begins."""
        self._steps += 1
        self._stop()

    def step_done(self) -> None:
        """The step and what belongs to it, such as a checkpoint, is done: the next batch is asked for."""
        self._start()

    def must_agree(self, start: int, steps: int) -> bool:
        """Whether the processes ask each other after the ``start``-th of the epoch's ``steps``: the same in all."""
        return start % self.stop_period == 0 or start % self.log_period == 0 or start == steps

    def read(self) -> Spread | None:
        """The spread since the last reading, None for one process. All call it, at a log period."""
        if self.ranks.world_size == 1 or not self._steps:
            return None
        own = sum(map(self._seconds, self._spans)) / self._steps
        step = (time.perf_counter() - self._began) / self._steps
        self._spans.clear()
        self._began, self._steps = time.perf_counter(), 0
        everyones = gather_objects((own, step, socket.gethostname()))
        slowest_step = max(step for _, step, _ in everyones)
        self.stop_period = max(1, min(self.log_period, int(STOP_CHECK_S / max(slowest_step, 1e-9))))
        owns = [own for own, _, _ in everyones]
        rank = owns.index(max(owns))
        return Spread(min(owns), median_low(owns), max(owns), rank, everyones[rank][2])

    def _start(self) -> None:
        self._open = self._now()

    def _stop(self) -> None:
        if self.ranks.world_size > 1:
            self._spans.append((self._open, self._now()))

    def _now(self) -> Any:
        if self.ranks.world_size == 1 or not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, span: tuple[Any, Any]) -> float:
        begin, end = span
        if not self.on_gpu:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
