"""How long a step, the loader, and both together take."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def time_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    device: torch.device,
    *,
    warmup: int,
    count: int,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Medians in seconds a batch: ``test_step_s``, ``train_step_s``, ``loader_s``, ``both_s``.

    On a GPU also ``gpu_waits``, the share of ``both_s``, 0..1, by which it is longer than the step alone.

    Args:
        model: the classifier; its weights are changed.
        optimizer: its optimiser; its learning rate is 0.
        loader: the training loader.
        device: where all of it runs.
        warmup: batches before the clock starts.
        count: batches timed.
        autocast: type of the mixed precision, or None.
    """
    batches = _endless(loader)
    images, labels, _ = next(batches)

    def mixed() -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)

    def test() -> None:
        model.eval()
        with torch.no_grad(), mixed():
            model(images)

    def train(images: Any = images, labels: Any = labels) -> None:
        model.train()
        with mixed():
            loss = model(images, labels).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def both() -> None:
        train(*next(batches)[:2])

    jobs = {"test_step_s": test, "train_step_s": train, "loader_s": lambda: next(batches), "both_s": both}
    times = {name: _median(job, device, warmup, count) for name, job in jobs.items()}
    if device.type == "cuda":
        times["gpu_waits"] = max(0.0, 1 - times["train_step_s"] / times["both_s"])
    return times


def _endless(loader: Any) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _median(job: Callable[[], Any], device: torch.device, warmup: int, count: int) -> float:
    for _ in range(warmup):
        job()
    times = []
    for _ in range(count):
        _wait(device)
        start = time.perf_counter()
        job()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
