"""Sharded models, of which each process has a shard: their states, from any number of processes for any other.

A shard is of one of two kinds: a ``DTensor`` of FSDP2 (any parameter), or the rows of a process's classes, in a module that
has a ``shard`` which can take them from the whole and gather them again (``HEAD.PARALLEL class``).
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.sharded_rows import ShardedRows
from pycls.engine.checkpoint.snapshot import LocalShard
from pycls.runtime.distributed import agree, all_reduce_sum, gather_objects, gather_rows

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Where = Literal["everywhere", "rank 0", "sharded"]


def is_dtensor(value: object) -> "TypeGuard[DTensor]":
    """Whether it is sharded by FSDP2, whose modules take a second to import: where they are not imported, nothing is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _is_fsdp(network: nn.Module) -> "TypeGuard[FSDPModule]":
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(network, module.FSDPModule)


def class_shards(model: nn.Module) -> dict[str, Any]:
    """The class shards by the names of the parameters that are sharded by class."""
    return {
        f"{prefix}.{name}" if prefix else name: module.shard
        for prefix, module in model.named_modules()
        if vars(module).get("shard") is not None  # a class may have the attribute, for none
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim
    }


def is_sharded(model: nn.Module) -> bool:
    """Whether a process has a shard of the model only: then all must make each forward pass together."""
    return bool(class_shards(model)) or any(is_dtensor(parameter) for parameter in model.parameters())


def gather_fn(model: nn.Module, where: Where = "everywhere") -> Callable[[str, Tensor], Tensor | LocalShard]:
    """(name of a parameter or buffer, its value or a state of the optimiser for it) -> the value to save.

    Of what is sharded this is the whole, in the host's memory: in every process, or in rank 0's only, where the others send
    theirs and get their own back. Or each process gets its own rows as a :class:`LocalShard`, without communication. All
    processes call it for the same names in the same order.
    """
    shards = class_shards(model)

    def gather(name: str, value: Tensor) -> Tensor | LocalShard:
        if is_dtensor(value):
            own, sizes = value.to_local().detach(), _rows_of_processes(value)
        elif name in shards and value.ndim:
            own, sizes = value.detach(), shards[name].sizes(value)
        else:
            return value
        if len(sizes) == 1:
            return own.cpu()
        if where == "sharded":
            return LocalShard(own)
        if where == "rank 0":
            return gather_rows(own.cpu(), sizes)
        return value.full_tensor().cpu() if is_dtensor(value) else shards[name].whole(own.cpu())

    return gather


def _rows_of_processes(value: "DTensor") -> list[int]:
    """How many rows each process has: FSDP2 shards as ``torch.chunk`` does."""
    count = value.device_mesh.size()
    most = -(-len(value) // count)
    return [max(0, min(most, len(value) - rank * most)) for rank in range(count)]


def shard_fn(model: nn.Module) -> Callable[[str, Tensor | ShardedRows], Tensor]:
    """Undoes :func:`gather_fn`: (name, whole) -> this process's shard."""
    shards, parameters = class_shards(model), dict(model.named_parameters())

    def shard(name: str, value: Tensor | ShardedRows) -> Tensor:
        like = parameters.get(name)
        if is_dtensor(like) and value.shape == like.shape:
            sizes, rank, mesh = _rows_of_processes(like), like.device_mesh.get_local_rank(), like.device_mesh
            rows = value[sum(sizes[:rank]) : sum(sizes[: rank + 1])].to(like.device)
            return type(like).from_local(rows, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())
        if name in shards and value.ndim:
            return value[shards[name].rows(len(value))]
        return value[:] if isinstance(value, ShardedRows) else value

    return shard


def whole_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the parameters and buffers, of all processes' rows where they are sharded."""
    shards = class_shards(model)
    return {
        name: torch.Size((sum(shards[name].sizes(value)), *value.shape[1:])) if name in shards else value.shape
        for name, value in model.state_dict().items()
    }


def shard_parameters(model: nn.Module, units: Iterable[nn.Module], ignored: set[nn.Parameter]) -> None:
    """FSDP2: shards the parameters among all processes, which gather those of one of the ``units`` at a time for the
    forward and backward passes, and what no unit has for all of both. ``ignored`` stay as they are."""
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last order
    for unit in (*units, model):
        fully_shard(unit, ignored_params=ignored)


@contextlib.contextmanager
def without_reduction(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradients of a backward pass inside stay on their process, to be added to (DDP's ``no_sync``), if that is wanted."""
    if _is_fsdp(network):
        network.set_requires_gradient_sync(not wanted)
        yield
        return
    quiet = wanted and isinstance(network, nn.parallel.DistributedDataParallel)
    with network.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
        yield


@torch.no_grad()
def clip_gradients(model: nn.Module, most: float) -> None:
    """Scales the gradients so that their norm, over the whole model, is ``most`` at the most."""
    if not is_sharded(model):
        nn.utils.clip_grad_norm_(model.parameters(), most)
        return
    shards = class_shards(model)
    sharded: list[Tensor] = []
    whole: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if is_dtensor(parameter.grad):
            sharded.append(parameter.grad.to_local())
        elif parameter.grad is not None:
            (sharded if name in shards else whole).append(parameter.grad)
    sharded_norm, whole_norm = nn.utils.get_total_norm(sharded), nn.utils.get_total_norm(whole)
    total = (all_reduce_sum(sharded_norm.square()) + whole_norm.square()).sqrt()
    torch._foreach_mul_([*sharded, *whole], (most / (total + 1e-6)).clamp(max=1))


def first_found(found: str | None) -> str | None:
    """What the first process that found something found; the same in all of them."""
    return next((one for one in gather_objects(found) if one is not None), None)


def in_step(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any, int]]:
    """(images, labels, how many of them count) until every process is through: a process that has no more repeats its
    last images, or sees black ones, which do not count."""
    rest = iter(batches)
    batch = next(rest, None)
    shape = next((one for one in gather_objects(None if batch is None else tuple(batch[0].shape[1:])) if one), ())
    images, labels = torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    while agree(batch is not None):
        if batch is not None:
            images, labels = batch[0], batch[1]
        yield images, labels, 0 if batch is None else len(labels)
        batch = next(rest, None)
