"""How long a checkpoint blocks training: ResNet-50, its moving average and its optimiser.

Compared in the same rounds with copying the same tensors to allocated memory, which is the lower limit, and with ``torch.save``
without and with ``fsync``.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import parse, parser, setting, shown_seconds, table, verdict

import pycls
from pycls.engine.checkpoint.checkpoints import Checkpoints, model_state, optimizer_state
from pycls.engine.ema import Ema
from pycls.runtime.memory import keep_freed_memory

GOAL_S = 0.080


def make_state(name: str, device: str) -> tuple[torch.nn.Module, Callable[[], dict[str, Any]]]:
    """A model after a step, and what gives its whole state as it lies on the device."""
    model = pycls.create_model(name, num_classes=1000).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(model, 0.1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, lambda: {
        "model": model_state(model, "sharded"), "ema": model_state(ema.model, "sharded"),
        "optimizer": optimizer_state(model, optimizer, "sharded"),
    }  # fmt: skip


def seconds(job: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def timings(name: str, device: str, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds by what is measured, one a round; the first round, which allocates, is not counted."""
    model, state = make_state(name, device)
    sources = [*model_state(model).values()] * 2 + [v["momentum_buffer"] for v in state()["optimizer"].values()]
    buffers = [torch.empty_like(source, device="cpu", pin_memory=source.is_cuda) for source in sources]
    checkpoints = Checkpoints(folder, keep=1)

    def copy() -> None:
        for to, source in zip(buffers, sources, strict=True):
            to.copy_(source)

    def stop() -> None:
        weights = {f"model/{name}" for name, _ in model.named_parameters()}
        checkpoints.save(len(found["until written to disk"]), state(), best=False, finite=weights)

    def save(sync: bool) -> None:
        with (folder / "torch.pt").open("wb") as file:
            torch.save(state(), file)
            if sync:
                file.flush()
                os.fsync(file.fileno())

    jobs: dict[str, Callable[[], object]] = {
        "pycls: the training loop is blocked": stop,
        "until written to disk": checkpoints.wait,
        "copying the tensors only": copy,
        "torch.save": lambda: save(sync=False),
        "torch.save + fsync": lambda: save(sync=True),
    }
    found: dict[str, list[float]] = {title: [] for title in jobs}
    for _ in range(repeats + 1):
        for title, job in jobs.items():
            found[title].append(seconds(job))
    return {title: values[1:] for title, values in found.items()}


def main() -> None:
    options = parser("A checkpoint of ResNet-50 with moving average and optimiser beside torch.save.", repeats=7)
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--folder", type=Path, help="on the disk to write to; a temporary one if not given")
    arguments = parse(options)
    keep_freed_memory()
    name = "ResNet-18" if arguments.quick else "ResNet-50"
    print(setting(arguments.device), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = timings(name, arguments.device, Path(folder), arguments.repeats)
    rows = []
    for title, values in found.items():
        middle = statistics.median(values)
        goal = GOAL_S if title.startswith("pycls") else None
        rows.append([title, *map(shown_seconds, (middle, min(values), max(values))), *verdict(middle, goal)])
    print(table([f"{name}, {arguments.repeats} rounds", "median", "least", "most", "goal (s)", ""], rows))


if __name__ == "__main__":
    main()
