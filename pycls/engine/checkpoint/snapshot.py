"""A copy of a tree of tensors and plain values as it is now, in host memory that the next copy uses again.

To copy is all that a training has to wait for; what was copied can be written to the disk while it goes on.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pycls.engine.checkpoint.copying import copy_all

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
    bad = copy_all(sources, copies, finite)
    if any(source.is_cuda for source in sources.values()):
        torch.cuda.synchronize()  # the copies into page-locked memory
    return Snapshot(tree, {n: copies[n] for n in tensors if n in copies}, {n: copies[n] for n in shards}, bad)


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
