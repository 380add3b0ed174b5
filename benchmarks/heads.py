"""Every head, forward and backward, compared with a linear head, pytorch-metric-learning and torch itself in one run.

    python benchmarks/heads.py [--size small|wide|many|tiny|million|gpu-small|gpu-100k|gpu-1m] [--heads NAME ...]
                               [--repeats N] [--threads N] [--device cpu|cuda] [--dtype float32|bf16] [--graph]
                               [--memory] [--no-peers] [--save] [--busy] [--quick]

The linear head is ``nn.Linear`` and ``F.cross_entropy``. A call computes the loss of features [N, D] and its gradients with
respect to features and weights, all newly allocated (set to None before, as an optimiser's ``zero_grad`` does). A head and the
linear head alternate. pytorch-metric-learning, if it is installed, has its own weights and takes the same features. "arcface's
formula" is ArcFace written plainly, under torch.compile; F.linear_cross_entropy is torch's own (2.13 on), with its options.
"matrix products" are only the three products with the weights, into allocated memory: the lower limit for every head. On the
CPU freed memory is kept (``pycls.runtime.memory``) for all of them, as in training: otherwise page faults for new gradients
would be counted at random. A head with several prototypes per class is compared with a linear head of as many outputs, and L-GM
with a diagonal covariance, which has the arithmetic of twice the features, with a linear head of that size.

On CUDA a small head may finish before the host has launched the next kernel; then the time is that of the host. ``--graph``
captures each side in a CUDA graph first.

Memory (--memory, and always at the sizes that have a goal for it): on the CPU each head has its own process, in which
a tiny head of its kind has run before, so that libraries are loaded; weights and features are created, the kernel's peak of the
resident set is reset, and two calls run. "extra" is the peak minus the resident set before the calls; "peak" is extra plus
features and weights. ``ru_maxrss`` cannot be used: it is inherited from the starting process. On CUDA both are the allocator's,
in one process. A head that does not fit into the device's memory is shown as such.

``--size million`` times a whole step of a million classes, SGD with momentum included, and shows the process's peak.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from common import Job, clock_of, graphed, parse, parser, setting, shown_seconds, shown_spread, side_by_side, table, verdict
from head_entries import (
    QUICK,
    SIZES,
    Entry,
    Plain,
    Problem,
    Size,
    autocast_of,
    entries,
    matrix_products,
    one,
    plain_name,
)
from head_memory import OUT_OF_MEMORY, memory_table, million_table, report_memory, report_step

from pycls.runtime.memory import keep_freed_memory


def goal_of(name: str, entry: Entry, size: Size) -> float | None:
    """The goal for an entry's time, as a multiple of the plain head's."""
    return None if entry.peer_of else size.own_goals.get(name, size.goal)


def time_table(
    chosen: dict[str, Entry], size: Size, arguments: argparse.Namespace, ratios: dict[str, tuple[float, float, float]]
) -> str:
    """Times of one entry after the other, so that at most one of them and one plain head are in memory. Fills ``ratios``:
    by name the median and the quartiles."""
    device, autocast = arguments.device, autocast_of(arguments)
    clock, rows, plains = clock_of(device, arguments.busy), [], []
    least_s = 0.0 if arguments.quick else 0.1
    for name, entry in {"matrix products": None, **chosen}.items():
        multiples = entry.beside if entry else (1, 1)
        against = plain_name(multiples)
        try:
            jobs = {against: _plain_job(size.times(*multiples), device, autocast), name: _job(entry, size, device, autocast)}
            if arguments.graph:
                jobs = {title: graphed(job) for title, job in jobs.items()}
            found = side_by_side(jobs, {name: against}, arguments.repeats, clock, least_s)
        except torch.OutOfMemoryError:
            rows.append([name, OUT_OF_MEMORY, "", "", "", "", ""])
            continue
        finally:
            jobs = {}  # what they hold is free before the next ones are made
        if against not in plains:
            plains.append(against)
            rows.append([against, shown_seconds(found[against].second), "1", "", "", "", ""])
        measured = found[name]
        ratios[name] = (measured.ratio, *measured.spread)
        goal = verdict(measured.ratio, goal_of(name, entry, size) if entry else None)
        rows.append([name, shown_seconds(measured.second), f"{measured.ratio:.2f}", shown_spread(measured.spread),
                     "" if against == "linear" else against, *goal])  # fmt: skip
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return table(["", "forward, backward", "x linear", "quartiles", "beside", "goal", ""], rows)


def _plain_job(size: Size, device: str, autocast: torch.dtype | None) -> Job:
    return Problem(Plain(size, device), size, device, autocast).call


def _job(entry: Entry | None, size: Size, device: str, autocast: torch.dtype | None) -> Job:
    """A head's call; of none the matrix products alone."""
    if entry is None:
        return matrix_products(size, device, autocast or torch.float32)
    return Problem(entry.make(size, device), size, device, autocast).call


def save(ratios: dict[str, tuple[float, float, float]], size: Size, arguments: argparse.Namespace) -> None:
    """Writes benchmarks/results/heads_SIZE.json, of which docs/heads.md shows the small one."""
    where = ", ".join(setting(arguments.device).splitlines()).split("; load")[0]
    note = (f"N {size.n}, D {size.d}, K {size.k:,}, {arguments.dtype}, {where}, {torch.get_num_threads()} threads; "
            f"`python benchmarks/heads.py --size {arguments.size} --save`.")  # fmt: skip
    target = Path(__file__).parent / f"results/heads_{arguments.size.replace('-', '_')}.json"
    target.parent.mkdir(exist_ok=True)
    rounded = {name: [round(value, 2) for value in values] for name, values in ratios.items()}
    target.write_text(json.dumps({"note": note, "ratio": rounded}, indent=1) + "\n", encoding="utf-8")


def options() -> argparse.ArgumentParser:
    """What can be asked."""
    asked = parser("Every head beside a plain linear head.", repeats=15)
    asked.add_argument("--size", choices=SIZES, default="small",
                       help="; ".join(f"{name}: N {s.n}, D {s.d}, K {s.k:,}" for name, s in SIZES.items()))  # fmt: skip
    asked.add_argument("--heads", nargs="+", default=[], metavar="NAME", help="some of them (all; million: arcface)")
    asked.add_argument("--no-peers", action="store_true", help="without pytorch-metric-learning")
    asked.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    asked.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="bf16: under autocast")
    asked.add_argument("--graph", action="store_true", help="cuda: both sides as CUDA graphs, without the host's time")
    asked.add_argument("--memory", action="store_true", help="the table of memory, also where there is no goal for it")
    asked.add_argument("--save", action="store_true", help="write benchmarks/results/heads_SIZE.json")
    asked.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    asked.add_argument("--step-of", default="", help=argparse.SUPPRESS)
    return asked


def choose(arguments: argparse.Namespace, asked: argparse.ArgumentParser) -> dict[str, Entry]:
    """The entries wanted."""
    everything = entries(with_peers=not arguments.no_peers and arguments.size != "million")
    default = ["arcface"] if arguments.size == "million" else list(everything)
    wanted = arguments.heads or default
    unknown = [name for name in wanted if name not in everything]
    if unknown:
        asked.error(f"--heads: there is no {', '.join(unknown)}; there are {', '.join(everything)}")
    return {name: entry for name, entry in everything.items() if (entry.peer_of or name) in wanted}


def main() -> None:
    asked = options()
    arguments = parse(asked)
    size = QUICK if arguments.quick else SIZES[arguments.size]
    if arguments.size == "million" and arguments.device == "cuda":
        asked.error("--size million is for the CPU; a million classes on CUDA are gpu-1m")
    if arguments.graph and arguments.device != "cuda":
        asked.error("--graph needs --device cuda")
    if arguments.memory_of:
        return report_memory(one(arguments.memory_of), size, arguments)
    if arguments.step_of:
        return report_step(one(arguments.step_of), size, arguments.repeats)
    chosen = choose(arguments, asked)
    if arguments.device == "cpu":
        keep_freed_memory()
    print(setting(arguments.device))
    print(f"N {size.n}, D {size.d}, K {size.k:,}, {arguments.dtype}; {arguments.repeats} rounds")
    if not any("pytorch-metric-learning" in name for name in chosen):
        print("without pytorch-metric-learning: not asked for, not installed, or without such losses")
    if arguments.size == "million":
        print(f"\n{million_table(chosen, size, arguments)}")
        return None
    ratios: dict[str, tuple[float, float, float]] = {}
    print(f"\n{time_table(chosen, size, arguments, ratios)}")
    if arguments.save:
        save(ratios, size, arguments)
    if arguments.memory or size.memory_goal:
        print(f"\nMemory\n\n{memory_table(chosen, size, arguments)}")
    return None


if __name__ == "__main__":
    main()
