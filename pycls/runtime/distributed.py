"""The process group: who this process is among how many, and the few collectives a run needs.

Every function works in a single process too, where there is no group and nothing is communicated.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pycls.errors import InputError
from pycls.runtime.worker import RENDEZVOUS


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: 0..world_size - 1, over all machines.
        world_size: processes of the run.
        local_rank: 0..local_world_size - 1, on this machine.
        local_world_size: processes of the run on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the log and the checkpoints."""
        return self.rank == 0


def ranks_from_env() -> Ranks:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun,
    :mod:`pycls.runtime.launch` and :mod:`pycls.runtime.slurm` set them.

    Raises:
        InputError: they are there but make no sense.
    """
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    rank, world_size = _integer("RANK"), _integer("WORLD_SIZE")
    local_rank = _integer("LOCAL_RANK", rank)
    local_world_size = _integer("LOCAL_WORLD_SIZE", world_size)
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
        raise InputError(
            f"the environment's RANK={rank} WORLD_SIZE={world_size} LOCAL_RANK={local_rank} "
            f"LOCAL_WORLD_SIZE={local_world_size} contradict each other; unset them, or start by torchrun"
        )
    return Ranks(rank, world_size, local_rank, local_world_size)


def _integer(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        found = "is missing" if text is None else f"is {text!r}, no integer"
        raise InputError(f"WORLD_SIZE is in the environment but {name} {found}; unset it, or use torchrun") from None


def init_process_group_from_env(device: torch.device, timeout_s: float) -> Ranks:
    """Join the other processes of this run, if there are any, and return who this one is.

    CPU tensors travel by gloo, also in a run on GPUs: agreeing on a flag then does not wait for the device. CUDA
    tensors travel by NCCL. Processes of :func:`pycls.runtime.launch.launch_local` meet at a file, so that no port has
    to be free; those of torchrun and of srun (:mod:`pycls.runtime.slurm`) at MASTER_ADDR:MASTER_PORT.

    Args:
        device: where this process computes.
        timeout_s: seconds after which a collective that another process does not join is an error, on CPU or GPU.

    Raises:
        InputError: the environment makes no sense, or the device cannot be used by several processes.
    """
    ranks = ranks_from_env()
    if "WORLD_SIZE" not in os.environ:
        return ranks
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"a run on {device.type} is a run of one process; ask for one, or for the device cpu")
    on_gpu = device.type == "cuda"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=_store(ranks, timeout),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )
    return ranks


def _store(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """Where the processes find each other.

    torchrun keeps one store for all its attempts, with the addresses of dead workers in it; a worker of the next attempt
    that reads one of these waits for it in vain. So each attempt has its own part of the store.
    """
    file = os.environ.get(RENDEZVOUS)
    if file:
        return dist.FileStore(file, ranks.world_size)
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {ranks.world_size}", store)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, in place, and return the tensor. Sums of counts are exact: integers must be int64.

    Args:
        tensor: any shape, on the CPU or this process's GPU; int64 or floating point; of one shape in all processes.

    Raises:
        ValueError: a tensor of smaller integers or booleans, whose sum could overflow.
    """
    if not tensor.is_floating_point() and tensor.dtype != torch.int64:
        raise ValueError(f"a sum over processes is of int64 or floating point, not of {tensor.dtype}")
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def barrier() -> None:
    """Wait until every process has come here."""
    largest(0)


def agree(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all of them. Waits for the processes, not for GPUs."""
    return bool(largest(int(flag)))


def largest(number: int) -> int:
    """The largest of the processes' numbers, in all of them. Waits for the processes, not for GPUs."""
    if not dist.is_initialized():
        return number
    vote = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return int(vote.item())


def gather_objects(value: Any) -> list[Any]:
    """Every process's ``value``, by rank, in every process. It is pickled: between processes of one run only."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(part: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The rows of all processes, in the order of their ranks, in rank 0; in any other just its own.

    Args:
        part: this process's rows [sizes[rank], ...], on the CPU, of one dtype in all processes.
        sizes: how many each process has.
    """
    if not dist.is_initialized() or len(sizes) == 1:
        return part
    rank, whole = dist.get_rank(), part
    if rank == 0:
        whole = part.new_empty(sum(sizes), *part.shape[1:])
        whole[: sizes[0]] = part
        for source in range(1, len(sizes)):
            if sizes[source]:
                start = sum(sizes[:source])
                dist.recv(whole[start : start + sizes[source]], src=source)
    elif sizes[rank]:
        dist.send(part.contiguous(), dst=0)
    return whole


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The ``source`` process's ``value``, in every process. It is pickled: between processes of one run only."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every process rank 0's buffers: batch-norm statistics differ between processes until the next step."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def destroy() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
