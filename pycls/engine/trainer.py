"""The training loop, and the state from which it continues."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.checkpoints import (
    Checkpoints,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from pycls.engine.checkpoint.sharded import clip_gradients, first_found, is_sharded, without_reduction
from pycls.engine.ema import Ema
from pycls.engine.finite import first_bad_step
from pycls.engine.meters import TrainMeter
from pycls.engine.optim import Schedule, set_lr
from pycls.errors import RunError
from pycls.report.reporter import Reporter
from pycls.runtime.distributed import Ranks, barrier, broadcast_buffers, gather_objects, largest
from pycls.runtime.rank_timer import RankTimer
from pycls.runtime.signals import StopSignal, exit_code_of

logger = logging.getLogger(__name__)

Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Any]]
"""(images, labels, step) -> images and a label mixture."""


class Stopped(Exception):
    """Training was asked to stop; it has saved a checkpoint. ``exit_code`` is the process's."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped with exit code {exit_code}")
        self.exit_code = exit_code


@dataclass
class Settings:
    """The loop's numbers; the names are the options'."""

    max_epoch: int
    seed: int
    batch_size: int
    accum_steps: int = 1
    clip_norm: float = 0.0
    autocast: torch.dtype | None = None
    eval_period: int = 1
    checkpoint_period: int = 1
    checkpoint_steps: int = 0
    log_period: int = 10
    top_k: int = 5


@dataclass
class Trainer:
    """Everything a training is made of.

    Attributes:
        model: the classifier itself; its state is what is saved.
        network: what is called: the model (perhaps sharded by FSDP2), or its DDP wrapper.
        loader: ``epoch(e, start)`` yields (images, labels, ids); ``len()`` is the number of steps in an epoch.
        evaluate: model -> results with ``top1_err``, or None where nothing is evaluated in training.
        before_evaluation: called with the epoch (precise batch norm).
        choose_best: whether an evaluation may choose the best checkpoint (never on the test split).
        extra: further entries for the checkpoint (config, versions).
        sample_log: (step, ids) -> None, called with every batch, or None.
        head_stats: () -> statistics of the head, called once a log period, or None.
    """

    model: Any
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loader: Any
    ema: Ema | None
    mix: Mix | None
    evaluate: Callable[[nn.Module], dict[str, Any]] | None
    before_evaluation: Callable[[int], None]
    choose_best: bool
    checkpoints: Checkpoints
    settings: Settings
    device: torch.device
    ranks: Ranks
    reporter: Reporter
    extra: dict[str, Any]
    sample_log: Callable[[int, Tensor], None] | None = None
    head_stats: Callable[[], dict[str, float]] | None = None
    epoch: int = 0
    start: int = 0
    best_error: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = TrainMeter(self.device, self.settings.top_k)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.autocast is torch.float16)
        self.rank_timer = RankTimer(self.model, self.device, self.ranks, self.settings.log_period)
        self._recent_ids: list[Tensor] = []

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.epoch * len(self.loader) + self.start

    def fit(self) -> None:
        """Trains from the present state to the last epoch.

        Raises:
            Stopped: a signal asked for it.
            RunError: the loss is not finite, or a checkpoint cannot be written.
        """
        with StopSignal() as stop, self.checkpoints:
            if self.step == 0 and self.settings.max_epoch == 0:
                self.save()  # the initial weights are the result
            while self.epoch < self.settings.max_epoch:
                self._train_epoch(stop)
                self._end_epoch()
        if self.ranks.is_main:
            self.checkpoints.prune(self.step)  # a kill may have come between the last checkpoint and this

    def _train_epoch(self, stop: StopSignal) -> None:
        settings, steps = self.settings, len(self.loader)
        self.network.train()
        self.model.set_epoch(self.epoch)
        self.rank_timer.begin_epoch()
        with self.reporter.begin_epoch(self.epoch, self.start):
            for images, labels, ids in self.loader.epoch(self.epoch, self.start):
                self.rank_timer.batch_ready()
                lr = self.schedule(self.epoch + self.start / steps)
                set_lr(self.optimizer, lr)
                seed_step(settings.seed, self.step, self.ranks.rank)
                self._recent_ids.append(ids)
                if self.sample_log is not None:
                    self.sample_log(self.step, ids)
                self._step(images, labels)
                self.start += 1
                if self.ema is not None:
                    self.ema.update(self.step)
                if self.start % settings.log_period == 0 or self.start == steps:
                    stats = self._check_finite()
                    self.checkpoints.raise_error()
                    seen = self.head_stats() if self.head_stats is not None else {}
                    self.reporter.steps_done(self.epoch, self.start, lr, stats, seen, self.rank_timer.read())
                if self.rank_timer.must_agree(self.start, steps):
                    self._stop_if_asked(stop)
                if settings.checkpoint_steps and self.start % settings.checkpoint_steps == 0 and self.start < steps:
                    self.save()
                self.rank_timer.step_done()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward, step: one global batch."""
        settings = self.settings
        parts = settings.accum_steps
        pieces = zip(images.chunk(parts), labels.chunk(parts), strict=True) if parts > 1 else ((images, labels),)
        for k, (some, targets) in enumerate(pieces):
            seen: Any = targets
            if self.mix is not None:
                some, seen = self.mix(some, targets, self.step * parts + k)
            with without_reduction(self.network, k + 1 < parts):
                with self._autocast():
                    output = self.network(some, seen)
                    loss = output.loss if parts == 1 else output.loss / parts
                self.scaler.scale(loss).backward()
            self.meter.update(output.loss, output.terms, output.logits, targets, getattr(output, "correct", None))
        if settings.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.model, settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.settings.autocast)

    def _check_finite(self) -> dict[str, float]:
        """Reads the meter; raises RunError if a loss since the last reading was not finite, on any process."""
        stats, losses = self.meter.read()
        ids, self._recent_ids = self._recent_ids, []
        bad = first_bad_step(losses, ids, self.settings.accum_steps)
        if bad is not None:
            start = self.start - len(ids) + bad.index  # steps of this epoch before it
            lr = self.schedule(self.epoch + start / len(self.loader))
            raise RunError(
                f"the loss is {bad.value} at step {self.step - self.start + start} (epoch {self.epoch + 1}, step "
                f"{start + 1}/{len(self.loader)}), learning rate {lr:.4g}; nothing of it was saved. Sample ids of the "
                f"batch: {bad.samples()}"
            )
        return stats

    def _stop_if_asked(self, stop: StopSignal) -> None:
        reason = largest(stop.reason)
        if reason:
            self.save()
            self.checkpoints.wait()
            barrier()  # no process exits before rank 0 has written: some launchers then end the others
            logger.info("asked to stop: saved a checkpoint after step %d of epoch %d; the same command continues",
                        self.start, self.epoch + 1)  # fmt: skip
            raise Stopped(exit_code_of(reason))

    def _end_epoch(self) -> None:
        settings = self.settings
        train = self._check_finite()
        row: dict[str, Any] = {"epoch": self.epoch + 1, "train": train}
        last = self.epoch + 1 == settings.max_epoch
        best = False
        if self.evaluate is not None and (last or (self.epoch + 1) % settings.eval_period == 0):
            seed_step(settings.seed, self.step, self.ranks.rank)
            self.before_evaluation(self.epoch)
            broadcast_buffers(self.model)
            if self.ema is not None:
                broadcast_buffers(self.ema.model)
            results = {"model": self.evaluate(self.model)}
            if self.ema is not None:
                results["ema"] = self.evaluate(self.ema.model)
            for name, result in results.items():
                row[name] = {k: v for k, v in result.items() if not isinstance(v, list)}
            error = min(row[name]["top1_err"] for name in results)
            if self.choose_best and error < self.best_error:
                best, self.best_error = True, error
                row["best"] = True
        self.history.append(row)
        self.reporter.end_epoch(row)
        self.epoch, self.start = self.epoch + 1, 0
        self.meter.reset()
        if last or best or self.epoch % settings.checkpoint_period == 0:
            self.save(best)

    # --- state

    def save(self, best: bool = False) -> None:
        """Saves everything that decides how training goes on; it is written in the background. All processes call it.

        Raises:
            RunError: a loss or a weight is not finite, or the disk refused the last one. Older checkpoints are intact.
        """
        if self._recent_ids:
            self._check_finite()
        state, weights = self.state_dict(), {f"model/{name}" for name, _ in self.model.named_parameters()}
        if is_sharded(self.model):
            self.checkpoints.save(self.step, state, best, self.ranks, weights, self._check_weights)
        elif self.ranks.is_main:
            self.checkpoints.save(self.step, state, best, finite=weights, check=self._check_weights)
        else:
            self._check_weights(None)  # they are rank 0's

    def _check_weights(self, bad: str | None) -> None:
        """All processes call it with the place of a weight that is not finite, or None."""
        bad = first_found(bad)
        if bad is not None:
            lr = self.schedule((self.step - 1) / len(self.loader))
            raise RunError(f"the weights {bad.removeprefix('model/')} are not finite after step {self.step - 1}, learning rate "
                           f"{lr:.4g}; they were not saved")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training goes on, of what is sharded this process's shard; all processes call it."""
        return {
            "model": model_state(self.model, "sharded"),
            "ema": model_state(self.ema.model, "sharded") if self.ema is not None else None,
            "optimizer": optimizer_state(self.model, self.optimizer, "sharded"),
            "scaler": self.scaler.state_dict(),
            "meter": gather_objects(self.meter.state_dict()),
            "epoch": self.epoch,
            "start": self.start,
            "best_error": self.best_error if math.isfinite(self.best_error) else None,
            "history": self.history,
            **self.extra,
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Continues from a saved state."""
        load_model_state(self.model, state["model"], source)
        if self.ema is not None and state["ema"] is not None:
            load_model_state(self.ema.model, state["ema"], source)
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.meter.load_state_dict(state["meter"], self.ranks.rank, self.ranks.world_size)
        self.epoch, self.start, self.history = state["epoch"], state["start"], state["history"]
        self.best_error = math.inf if state["best_error"] is None else state["best_error"]
        if self.ranks.is_main and self.start == 0 and self.history and self.history[-1].get("best"):
            self.checkpoints.link_best(self.step)  # a kill may have come between the checkpoint and this


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the generators that dropout and its like draw from, as a function of (seed, step, rank)."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    # torch.manual_seed goes through every back end there could be: a hundred times as long as one generator takes
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
