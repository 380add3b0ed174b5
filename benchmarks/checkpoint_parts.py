"""Memory that a checkpoint takes in each process if the classes of a head are sharded.

    python benchmarks/checkpoint_parts.py --classes 500000 --dim 128 --processes 2

A head with momentum is saved gathered in rank 0, as one file, and in parts, as in a run; then the parts are loaded. For each
process: the peak of the private memory that this adds (RssAnon, sampled every millisecond; pages of mapped files do not count,
since the system may drop them), and the time until the checkpoint is written, or loaded.
"""

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))

import pycls
from pycls.engine.checkpoint.checkpoints import (
    Checkpoints,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from pycls.engine.checkpoint.sharded import Where
from pycls.heads.parallel.shards import ClassShard, shard_classes
from pycls.runtime.distributed import Ranks, barrier

SAVED: tuple[tuple[str, Where], ...] = (("one file, by rank 0", "rank 0"), ("a part a process", "sharded"))


def own_memory() -> float:
    """Bytes of this process that are no file's."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def added(job: Callable[[], object]) -> tuple[float, float]:
    """(bytes at the highest above what there was before, seconds) of a job that all processes do together."""
    barrier()
    before, ended = own_memory(), threading.Event()
    highest = before

    def look() -> None:
        nonlocal highest
        while not ended.wait(0.001):
            highest = max(highest, own_memory())

    looking = threading.Thread(target=look)
    looking.start()
    start = time.perf_counter()
    job()
    barrier()
    seconds = time.perf_counter() - start
    ended.set()
    looking.join()
    return highest - before, seconds


def timings(rank: int, world_size: int, folder: str, classes: int, dim: int, where: Where) -> None:
    """One process of one way to save."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world_size), rank=rank, world_size=world_size)
    head = pycls.create_head("arcface", dim, classes)
    shard_classes(head, ClassShard(classes, rank, world_size))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    checkpoints = Checkpoints(f"{folder}/checkpoints", keep=1)

    def save() -> None:
        state = {"model": model_state(head, where), "optimizer": optimizer_state(head, optimizer, where)}
        if where == "sharded":
            checkpoints.save(1, state, False, Ranks(rank, world_size))
        elif rank == 0:
            checkpoints.save(1, state, False)
        del state
        checkpoints.wait()

    def load() -> None:
        state = checkpoints.newest(Ranks(rank, world_size))
        assert state is not None
        load_model_state(head, state["model"], "the checkpoint")
        load_optimizer_state(head, optimizer, state["optimizer"])

    found = added(save)
    optimizer.state.clear()  # what is read takes its place
    torch.save((*found, *added(load)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; a temporary one if not given")
    args = parser.parse_args()
    print(f"{args.classes:,} classes x {args.dim} with momentum: {8 * args.classes * args.dim / 1e6:.0f} MB\n")
    print("| saved as | rank | saving adds MB | s | loading adds MB | s |\n|---|---:|---:|---:|---:|---:|")
    for title, where in SAVED:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            mp.spawn(timings, (args.processes, folder, args.classes, args.dim, where), args.processes)
            for rank in range(args.processes):
                saved, save_s, loaded, load_s = torch.load(f"{folder}/{rank}.pt")
                print(f"| {title} | {rank} | {saved / 1e6:.0f} | {save_s:.1f} | {loaded / 1e6:.0f} | {load_s:.1f} |")


if __name__ == "__main__":
    main()
