"""Common code of the benchmarks: alternating measurements, timing and tables.

The speed of a machine varies with time. Therefore the compared programs alternate in every round, a ratio is that of two
consecutive measurements, and the median of the rounds' ratios and their quartiles are printed.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

Job = Callable[[], object]
SLICE_S = 0.005
"""Seconds of a slice; shorter calls are timed several at once."""

Clock = Callable[[Job, int], float]
"""(job, calls) -> seconds for all the calls together."""


@dataclass
class Measured:
    """One job's rounds.

    Attributes:
        seconds: a call's, one a round.
        ratios: of a call's seconds to those of the job beside it, one a round.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def second(self) -> float:
        """Median of a call's seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the ratios."""
        return quartiles(self.ratios)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of fewer than four values the least and the largest."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def graphed(job: Job) -> Job:
    """The same work on CUDA as a graph: what the host does to start it is done once, and no longer timed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made at the first call must be there before
        for _ in range(3):
            job()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        job()
    return graph.replay


def cpu_seconds(job: Job, calls: int) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return time.perf_counter() - start


def process_seconds(job: Job, calls: int) -> float:
    """CPU seconds of this process, all threads: what a busy machine's other work does not lengthen directly."""
    start = time.process_time()
    for _ in range(calls):
        job()
    return time.process_time() - start


def cuda_seconds(job: Job, calls: int) -> float:
    """The GPU's own seconds, between two events in its stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        job()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def clock_of(device: str, busy: bool = False) -> Clock:
    """The clock for a kind of device, or for a busy machine."""
    return cuda_seconds if device == "cuda" else process_seconds if busy else cpu_seconds


def side_by_side(
    jobs: dict[str, Job],
    beside: dict[str, str],
    rounds: int,
    clock: Clock = cpu_seconds,
    least_s: float = 0.1,
) -> dict[str, Measured]:
    """Times every job right beside the one it is compared with, ``rounds`` times.

    Within a round the two take turns slice by slice, a slice being a call or ``SLICE_S``, so that a neighbour on the same
    machine, who comes and goes in tenths of a second, disturbs both alike; who goes first changes with the round.

    Args:
        jobs: by name; those that only stand beside others are among them.
        beside: name -> name of the job it is compared with. A job missing here is timed only as others' neighbour.
        rounds: how often.
        clock: how a job is timed.
        least_s: slices are repeated within a round until a job's own last about so long.

    Returns:
        The measurements by name. A job beside others has its seconds from all of them.
    """
    calls = {name: _calls(job, clock, least_s) for name, job in jobs.items()}
    slices = {name: _calls(job, clock, min(least_s, SLICE_S)) for name, job in jobs.items()}
    found = {name: Measured() for name in jobs}
    for number in range(rounds):
        for name, neighbour in beside.items():
            pair = (neighbour, name) if number % 2 == 0 else (name, neighbour)
            each = min(slices[who] for who in pair)  # as many calls in a slice: a second one in a row finds its data cached
            count = max(1, round(max(calls[who] for who in pair) / each))
            took = dict.fromkeys(pair, 0.0)
            for _ in range(count):
                for who in pair:
                    took[who] += clock(jobs[who], each) / each / count
            for who, seconds in took.items():
                found[who].seconds.append(seconds)
            found[name].ratios.append(took[name] / took[neighbour])
    return found


def _calls(job: Job, clock: Clock, least_s: float) -> int:
    """How many calls last about ``least_s``; 1 for 0. The first call, which warms up, does not count."""
    clock(job, 1)
    if least_s == 0:
        return 1
    return max(1, round(least_s / max(clock(job, 1), 1e-7)))


def machine(device: str = "cpu") -> str:
    """The processor's name and cores, and the GPU's, where the system tells them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{model or platform.machine()}, {os.cpu_count()} cores{gpu}"


def setting(device: str = "cpu") -> str:
    """Where and when, two lines: machine, versions, threads, date, and how busy the machine was before."""
    load = f"; load before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{machine(device)}; {datetime.date.today().isoformat()}{load}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shown_spread(spread: tuple[float, float]) -> str:
    """Quartiles for a table."""
    return f"{spread[0]:.2f}..{spread[1]:.2f}"


def shown_seconds(seconds: float) -> str:
    """In the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def verdict(value: float, goal: float | None, at_least: bool = False) -> tuple[str, str]:
    """(goal, whether it is kept) for a table; empty where there is none."""
    if goal is None:
        return "", ""
    kept = value >= goal if at_least else value <= goal
    return f"{'>=' if at_least else '<='} {goal:g}", "kept" if kept else "MISSED"


def parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--repeats", type=int, default=repeats, help=f"rounds ({repeats})")
    options.add_argument("--threads", type=int, default=0, help="torch's threads; 0 for its own choice")
    options.add_argument("--busy", action="store_true", help="on a busy machine: one thread, and its CPU time")
    options.add_argument("--quick", action="store_true", help="tiny sizes and one round: does it run at all?")
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with torch's threads set."""
    arguments = options.parse_args()
    if arguments.repeats < 1:
        options.error("--repeats must be 1 or more")
    if getattr(arguments, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        options.error("--device cuda: this PyTorch finds no GPU")
    if arguments.quick:
        arguments.repeats = 1
    if arguments.busy:
        arguments.threads = 1
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments
