"""The output of a running training: a bar or plain lines for people, json_stats for programs, TensorBoard for both."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pycls.report.tensorboard import TensorBoardLogger
from pycls.runtime.log import log_json_stats
from pycls.runtime.progress import Progress
from pycls.runtime.rank_timer import Spread

logger = logging.getLogger(__name__)

LINE_PERIOD_S = 10.0
"""Seconds between two plain lines within an epoch: a log is to be read."""


WARNING_PERIOD_S = 300.0
"""Seconds between two warnings of a straggler."""

PERSISTS = 3
"""Log periods in a row in which the same process must be the straggler before a warning."""


class Reporter:
    """Logs a training's progress; silent on all ranks but the first.

    Args:
        tensorboard: where curves go.
        is_main: whether this is rank 0.
        max_epoch: epochs in all.
        steps: optimiser steps in an epoch.
        batch_size: images in a step, over all processes.
        split: what evaluations during training are on, ``val`` or ``test``.
    """

    def __init__(
        self, tensorboard: TensorBoardLogger, is_main: bool, max_epoch: int, steps: int, batch_size: int, split: str
    ) -> None:
        self.tensorboard, self.is_main, self.split = tensorboard, is_main, split
        self.max_epoch, self.steps, self.batch_size = max_epoch, steps, batch_size
        self._rate = 0.0
        self._ticks = self._last_line = time.perf_counter()
        self._last_warning = -math.inf
        self._slow: deque[int | None] = deque(maxlen=PERSISTS)
        self._done = 0
        self._progress: Progress | None = None

    def begin_epoch(self, epoch: int, start: int) -> Progress:
        """Epoch ``epoch`` (0-based) begins at its step ``start``. The bar is the caller's to close."""
        self._ticks, self._done = time.perf_counter(), start
        self._progress = Progress(self.steps * self.batch_size, f"epoch {epoch + 1}/{self.max_epoch}",
                                  None if self.is_main else False, initial=start * self.batch_size)  # fmt: skip
        return self._progress

    def steps_done(self, epoch: int, start: int, lr: float, stats: Mapping[str, float],
                   head: Mapping[str, float], spread: Spread | None = None) -> None:  # fmt: skip
        """``start`` steps of the epoch are done; ``stats`` are its means so far, ``head`` the head's numbers, ``spread``
        the processes' own times since the last call."""
        assert self._progress is not None, "an epoch has begun"
        now, images = time.perf_counter(), (start - self._done) * self.batch_size
        self._rate = images / max(now - self._ticks, 1e-9)
        self._ticks, self._done = now, start
        if not self.is_main:
            return
        self._progress.update(images, loss=stats["loss"], top1_err=stats["top1_err"])
        left = self._seconds_left(epoch, start)
        place = {"epoch": f"{epoch + 1}/{self.max_epoch}", "iter": f"{start}/{self.steps}"}
        log_json_stats({**place, "lr": lr, "img_per_s": self._rate, "time_left_s": left, **stats}, "train_iter")
        if head:
            log_json_stats({**place, **head}, "head")
        if spread is not None:
            self._compare(place, spread, now)
        curves = {**{f"train/{name}": value for name, value in stats.items()}, "train/lr": lr,
                  "train/img_per_s": self._rate, **{f"head/{name}": value for name, value in head.items()}}  # fmt: skip
        self.tensorboard.scalars(epoch * self.steps + start, curves)
        if not self._progress.enabled and now - self._last_line > LINE_PERIOD_S and start < self.steps:
            self._last_line = now
            logger.info("epoch %s, step %s: train loss %.4g, top-1 error %.2f %%, %.0f img/s, %s left", place["epoch"],
                        place["iter"], stats["loss"], stats["top1_err"], self._rate, duration(left))  # fmt: skip

    def _compare(self, place: Mapping[str, str], spread: Spread, now: float) -> None:
        """Logs the processes' own times, and warns now and then of a straggler."""
        log_json_stats({**place, **asdict(spread)}, "own_time")
        self._slow.append(spread.rank if spread.is_straggler else None)
        if list(self._slow) == [spread.rank] * PERSISTS and now - self._last_warning > WARNING_PERIOD_S:
            self._last_warning = now
            logger.warning("rank %d (%s) is a straggler: %.3g s/step for its batch and forward pass, median %.3g", spread.rank,
                           spread.host, spread.slowest, spread.middle)  # fmt: skip

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """A row of the history is complete."""
        if not self.is_main:
            return
        epoch, train = row["epoch"], row["train"]
        log_json_stats({"epoch": epoch, **train}, "train_epoch")
        words = [f"train loss {train['loss']:.4g}, top-1 error {train['top1_err']:.2f} %"]
        for name, kind in (("model", self.split), ("ema", f"{self.split}_ema")):
            if name in row:
                log_json_stats({"epoch": epoch, **row[name]}, f"{kind}_epoch")
                self.tensorboard.scalars(epoch * self.steps, {f"{kind}/{key}": value for key, value in row[name].items()})
                what = self.split if name == "model" else "moving average"
                words.append(f"{what} top-1 error {row[name]['top1_err']:.2f} %")
        self._last_line = time.perf_counter()
        speed = f"; {self._rate:,.0f} img/s" if self._rate else ""
        if speed and epoch < self.max_epoch:
            speed += f", {duration(self._seconds_left(epoch, 0))} left"
        best = " (best)" if row.get("best") else ""
        logger.info("epoch %d/%d: %s%s%s", epoch, self.max_epoch, ", ".join(words), best, speed)

    def _seconds_left(self, epoch: int, start: int) -> float:
        return ((self.max_epoch - epoch) * self.steps - start) * self.batch_size / self._rate


def duration(seconds: float) -> str:
    """For people: ``42 s``, ``3 min 20 s``, ``5 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60} min"
