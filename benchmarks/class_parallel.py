"""Memory and time of a head with classes sharded over processes, and an estimate of both for more processes and classes.

    python benchmarks/class_parallel.py --classes 500000 --dim 128 --processes 1 2 4
    python benchmarks/class_parallel.py --model

Measured: ArcFace with SGD and momentum on the CPU, gloo; for each process the resident memory that the head, its optimiser and
its steps add (the peak minus the value before), and the time of a step. The estimate is for GPUs; its assumptions are options.
"""

import argparse
import functools
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))

import pycls
from pycls.data import rng
from pycls.heads.ops.fused import KEPT_ELEMENTS
from pycls.heads.parallel.shards import ClassShard, shard_classes

GIGA = 1e9


def resident(kind: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return 1024.0 * int(found[1])


def timings(rank: int, world_size: int, store: str, classes: int, dim: int, batch: int, rate: float, out: str) -> None:
    """One process: builds its share, makes steps, writes bytes and seconds."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    before = resident("VmRSS")
    shard = ClassShard(classes, rank, world_size, rate, functools.partial(rng.hash64, 1, stream=rng.NEGATIVES))
    head = pycls.create_head("arcface", dim, classes)
    shard_classes(head, shard)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the whole head's initialisation
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(rank)
    times = []
    for _ in range(3):
        x = torch.randn(batch // world_size, dim, generator=draw, requires_grad=True)
        y = torch.randint(classes, (len(x),), generator=draw)
        start = time.perf_counter()
        head(x, y).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    torch.save((resident("VmHWM") - before, min(times)), f"{out}/{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def measured(classes: int, dim: int, batch: int, rate: float, world_size: int) -> tuple[float, float]:
    """The largest process's bytes and seconds a step."""
    with tempfile.TemporaryDirectory() as out:
        mp.spawn(timings, (world_size, f"{out}/store", classes, dim, batch, rate, out), world_size)
        found = [torch.load(f"{out}/{rank}.pt") for rank in range(world_size)]
    return max(size for size, _ in found), max(seconds for _, seconds in found)


def modelled(args: argparse.Namespace, classes: int, ranks: int, rate: float) -> tuple[float, float, float]:
    """Bytes of a GPU, and seconds of its products and of its messages in a step.

    Prototypes, their gradient and their momentum are 3 x 4 bytes a number; the logits of the global batch against its classes
    are kept up to ``KEPT_ELEMENTS`` and computed again above. A step is three products (four where logits are computed again)
    of 2 N D K / R operations. A GPU sends and receives its features' gathering and their gradients' scattering,
    (R - 1) / R of N D numbers each, and two all-reduces of some N numbers.
    """
    samples, own = args.per_gpu * ranks, classes / ranks
    logits = samples * own * rate
    kept = logits <= KEPT_ELEMENTS
    size = 4 * (3 * own * args.model_dim + (own * rate * args.model_dim if rate < 1 else 0) + (logits if kept else 0)
                + 2 * samples * args.model_dim)  # fmt: skip
    seconds = (3 if kept else 4) * 2 * logits * args.model_dim / (args.tflops * 1e12)
    seconds += 4 * (3 + 2) * own * args.model_dim / (args.memory_bandwidth * GIGA)  # the optimiser, and the zeroes
    sent = 4 * (ranks - 1) / ranks * (2 * samples * args.model_dim + 2 * 4 * samples)
    return size, seconds, sent / (args.bandwidth * GIGA) + 4 * args.latency_us * 1e-6 * max(ranks - 1, 0).bit_length()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64, help="over all processes")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", action="store_true", help="the model on paper instead")
    parser.add_argument("--per-gpu", type=int, default=64, help="samples of each GPU")
    parser.add_argument("--model-dim", type=int, default=512)
    parser.add_argument("--tflops", type=float, default=12.0, help="of a product in float32, reached (V100: 12)")
    parser.add_argument("--memory-bandwidth", type=float, default=750.0, help="GB/s, reached")
    parser.add_argument("--bandwidth", type=float, default=10.0, help="GB/s between GPUs, reached")
    parser.add_argument("--latency-us", type=float, default=20.0, help="of a message")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.model:
        print("| classes | GPUs | rate | GB a GPU | products ms | messages ms |\n|---:|---:|---:|---:|---:|---:|")
        for classes in (1_400_000, 10_000_000, 29_000_000, 100_000_000):
            for ranks in (8, 64, 256, 1024):
                for rate in (1.0, 0.1):
                    size, seconds, messages = modelled(args, classes, ranks, rate)
                    print(f"| {classes:,} | {ranks} | {rate:g} | {size / GIGA:.1f} | {1e3 * seconds:.1f} "
                          f"| {1e3 * messages:.1f} |")  # fmt: skip
        return
    print("| processes | MB a process | times R | ms a step |\n|---:|---:|---:|---:|")
    for ranks in args.processes:
        size, seconds = measured(args.classes, args.dim, args.batch, args.rate, ranks)
        print(f"| {ranks} | {size / 1e6:.0f} | {ranks * size / 1e6:.0f} | {1e3 * seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
