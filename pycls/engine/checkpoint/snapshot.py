"""A copy of a tree of tensors and plain values as it is now, in host memory that the next copy uses again.

To copy is all that a training has to wait for; what was copied can be written to the disk while it goes on.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TENSOR = "__tensor__"
PART = "__part__"
MAP = "__map__"


@dataclass(frozen=True)
class LocalShard:
    """In a tree that several processes save together: this process's rows of a tensor whose rows are sharded in rank order."""

    rows: Tensor


@dataclass(frozen=True)
class Snapshot:
    """A copy of a tree that nothing else changes.

    Attributes:
        tree: JSON, with a tensor's place in the tree as its name in its stead.
        tensors: by that name, on the CPU, each in the memory order of its original.
        shards: this process's rows of the sharded tensors, likewise.
        bad: the place of a tensor that was to be finite and is not, if there is one.
    """

    tree: str
    tensors: dict[str, Tensor]
    shards: dict[str, Tensor]
    bad: str | None = None


def take(
    state: Mapping[str, Any], memory: dict[str, Tensor] | None = None, shards_only: bool = False, finite: Collection[str] = ()
) -> Snapshot:
    """Copies a tree of dicts, lists, tensors, :class:`LocalShard`, numbers, strings, booleans and None; on return it may be
    changed again.

    Args:
        state: the tree.
        memory: tensors of an earlier snapshot that are no longer needed: they are written over where they fit, so that the
            system need not find, clear and map as much memory again. Those of this one are there afterwards.
        shards_only: whether another process takes what is not sharded.
        finite: the places of tensors and shards that are to be finite.

    Raises:
        TypeError: something else is in the tree.
    """
    memory = {} if memory is None else memory
    tensors: dict[str, Tensor] = {}
    shards: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, "", tensors, shards), sort_keys=True)
    sources = shards if shards_only else tensors | shards
    copies = {name: _host_buffer(source, memory.get(name)) for name, source in sources.items()}
    memory.clear()
    memory.update(copies)
    _copy(sources, copies)
    bad = _not_finite({name: source for name, source in sources.items() if name in frozenset(finite)})
    if any(source.is_cuda for source in sources.values()):
        torch.cuda.synchronize()  # the copies into page-locked memory
    return Snapshot(tree, {n: copies[n] for n in tensors if n in copies}, {n: copies[n] for n in shards}, bad)


@torch.no_grad()
def _copy(sources: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    """Fills the copies, those of the same names."""
    for name, source in sources.items():
        copies[name].copy_(source, non_blocking=source.is_cuda)


@torch.no_grad()
def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first that has an infinity or NaN. Its sum, which is far quicker than a look at each number, is not finite then."""
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    bad = set()
    for names in by_device.values():
        sums = torch.stack([tensors[name].sum().float() for name in names])
        if not bool(sums.isfinite().all()):
            bad |= {name for name in names if not bool(tensors[name].isfinite().all())}
    return next((name for name in tensors if name in bad), None)


def _host_buffer(source: Tensor, old: Tensor | None) -> Tensor:
    """Host memory for a copy in the same memory order, page-locked for what comes from a GPU."""
    if old is not None and (old.shape, old.dtype, old.stride()) == (source.shape, source.dtype, source.stride()):
        return old
    return torch.empty_like(source, device="cpu", requires_grad=False, pin_memory=source.is_cuda)


def _pack(value: Any, place: str, tensors: dict[str, Tensor], shards: dict[str, Tensor]) -> Any:
    """The JSON form of a tree; its tensors are added to ``tensors`` and ``shards`` under their places."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return {TENSOR: place}
    if isinstance(value, LocalShard):
        shards[place] = value.rows
        return {PART: place}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(item, f"{place}/{key}" if place else key, tensors, shards) for key, item in value.items()}
        return {MAP: [[key, _pack(item, f"{place}/{key}", tensors, shards)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{place}/{i}", tensors, shards) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: a {type(value).__name__} cannot be saved")
