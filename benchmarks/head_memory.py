"""Memory of a head compared with the linear head, and steps with a million classes: each in a separate process."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import shown_seconds, side_by_side, table, verdict
from head_entries import PLAINS, QUICK, Entry, Problem, Size, autocast_of, plain_name

MB = 1 << 20
MEMORY_LIMIT_GB = 12.0
OUT_OF_MEMORY = "out of memory"
SCRIPT = Path(__file__).with_name("heads.py")


def alone(question: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What ``heads.py`` in a separate process answers to a question about the entry ``name``."""
    command = [sys.executable, str(SCRIPT), question, name, "--size", arguments.size, "--dtype", arguments.dtype,
               "--repeats", str(arguments.repeats), "--threads", str(arguments.threads),
               *(["--quick"] if arguments.quick else [])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} could not be measured in a separate process (exit code {done.returncode}):\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_of(name: str, entry: Entry, size: Size, arguments: argparse.Namespace) -> tuple[float, float]:
    """(extra, peak) bytes of an entry."""
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
        problem = Problem(entry.make(size, "cuda"), size, "cuda", autocast_of(arguments))
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            problem.call()
        extra = torch.cuda.max_memory_allocated() - before
        return extra, extra + problem.bytes
    found = alone("--memory-of", name, arguments)
    return found["extra"], found["peak"]


def report_memory(entry: Entry, size: Size, arguments: argparse.Namespace) -> None:
    """In a separate process: prints extra and peak bytes as JSON."""
    autocast = autocast_of(arguments)
    warm_up = Problem(entry.make(QUICK, "cpu"), QUICK, "cpu", autocast)
    for _ in range(2):
        warm_up.call()
    problem = Problem(entry.make(size, "cpu"), size, "cpu", autocast)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: resets the peak of the resident set
        before = _status_bytes("VmRSS")
    except OSError as error:
        raise SystemExit(f"the memory table needs Linux's /proc: {error}") from error
    for _ in range(2):
        problem.call()
    extra = _status_bytes("VmHWM") - before
    print(json.dumps({"extra": extra, "peak": extra + problem.bytes}))


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")


def memory_table(chosen: dict[str, Entry], size: Size, arguments: argparse.Namespace) -> str:
    """Extra and peak memory beside the plain head's."""
    plains: dict[tuple[int, int], tuple[float, float]] = {}
    rows = []
    for name, entry in chosen.items():
        against = plain_name(entry.beside)
        try:
            if entry.beside not in plains:
                plain = plains[entry.beside] = memory_of(against, PLAINS[against], size, arguments)
                rows.append([against, f"{plain[0] / MB:,.0f}", "1", f"{plain[1] / MB:,.0f}", "1", "", "", ""])
            plain = plains[entry.beside]
            extra, peak = memory_of(name, entry, size, arguments)
        except torch.OutOfMemoryError:
            rows.append([name, OUT_OF_MEMORY, "", "", "", "", "", ""])
            continue
        ratio = peak / plain[1]
        goal = verdict(ratio, None if entry.peer_of else size.memory_goal)
        rows.append([name, f"{extra / MB:,.0f}", f"{extra / max(plain[0], 1):.2f}", f"{peak / MB:,.0f}", f"{ratio:.2f}",
                     "" if against == "linear" else against, *goal])  # fmt: skip
    return table(["", "extra MB", "x linear", "peak MB", "x linear", "beside", "goal", ""], rows)


def million_table(chosen: dict[str, Entry], size: Size, arguments: argparse.Namespace) -> str:
    """Whole steps, each head in a separate process."""
    rows = []
    for name in ("linear", *chosen):
        found = alone("--step-of", name, arguments)
        kept = "kept" if found["peak"] <= MEMORY_LIMIT_GB * 1e9 else "MISSED"
        rows.append([name, f"{found['weights']:,.0f}", shown_seconds(found["seconds"]), f"{found['peak'] / 1e9:.2f} GB",
                     f"<= {MEMORY_LIMIT_GB:g} GB", kept])  # fmt: skip
    return table(["", "weights", "a step", "peak of the process", "goal", ""], rows)


def report_step(entry: Entry, size: Size, repeats: int) -> None:
    """In a separate process: prints the median seconds of a step with SGD's update, and the peak, as JSON."""
    problem = Problem(entry.make(size, "cpu"), size, "cpu", None)
    optimizer = torch.optim.SGD(problem.module.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        problem.call()
        optimizer.step()

    found = side_by_side({"step": step}, {"step": "step"}, max(1, repeats // 2), least_s=0.0)
    weights = sum(p.numel() for p in problem.module.parameters())
    print(json.dumps({"seconds": found["step"].second, "peak": _status_bytes("VmHWM"), "weights": weights}))
