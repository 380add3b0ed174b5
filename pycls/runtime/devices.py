"""Which device a process computes on, with how many threads, and how repeatably."""

import os
from pathlib import Path

import torch

from pycls.errors import InputError
from pycls.runtime.slurm import cores_of_task


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of the process that is the ``local_rank``-th on this machine.

    Args:
        name: ``cpu``, ``cuda``, ``mps``, or ``auto`` for the first there is of cuda, mps and cpu.
        local_rank: 0 for the first process of this machine; process i takes GPU i.

    Raises:
        InputError: the device asked for is not there, or there are fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("the device mps was asked for, but this PyTorch finds none; use cpu or auto")
        return torch.device("mps")
    if name == "cuda":
        return _cuda(local_rank)
    raise InputError(f"there is no device named {name!r}; there are: auto, cpu, cuda, mps")


def _cuda(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        raise InputError("the device cuda was asked for, but this PyTorch finds no GPU; use cpu or auto")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise InputError(f"{local_rank + 1} processes on this machine need as many GPUs, but there are {count}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def set_threads(num_threads: int, local_world_size: int = 1) -> int:
    """Set how many CPU threads this process computes with, and return the number.

    Args:
        num_threads: how many; 0 for the cores that SLURM gives to a task, else shares the cores this process may run on
            evenly among the machine's processes.
        local_world_size: processes of this run on this machine.
    """
    count = num_threads or cores_of_task() or max(1, available_cores() // local_world_size)
    torch.set_num_threads(count)
    return count


def available_cores() -> int:
    """The cores this process may run on (its affinity mask where there is one), at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_deterministic(device: torch.device, deterministic: bool, cudnn_benchmark: bool) -> None:
    """Make repeated runs bit-identical: always on a CPU, where it costs next to nothing, and on request elsewhere.

    Args:
        device: where the run computes.
        deterministic: on a GPU, use only deterministic algorithms; an operation that has none raises an error.
        cudnn_benchmark: let cuDNN try its algorithms and keep the fastest. Ignored when ``deterministic``, since the
            choice depends on the clock.
    """
    on_cpu = device.type == "cpu"
    if deterministic and not on_cpu:
        torch.use_deterministic_algorithms(True)
    else:
        # the same switch, without importing the compiler to tell it too, which takes two seconds
        torch.set_deterministic_debug_mode("warn" if on_cpu else "default")
    # Filling every new tensor with NaN is a debugging aid that repeatability does not need, and it is slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = cudnn_benchmark and not deterministic
    if deterministic and device.type == "cuda":
        # cuBLAS reads it when it is first used; without it its workspaces make matrix products vary between runs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done by the hardware, and so faster than float32, rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags(path: str = "/proc/cpuinfo") -> set[str]:
    """The first core's feature flags as Linux names them (x86 ``flags``, Arm ``Features``); empty elsewhere."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
