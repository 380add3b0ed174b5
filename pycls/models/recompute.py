"""Activation checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016): of a backbone's blocks only the
inputs are kept for the backward pass, which computes the rest again, block by block."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """A net's blocks, in their order: the outermost modules that are made of others and stand in a row with their like."""
    found: list[nn.Module] = []
    for child in net.children():
        is_block = isinstance(net, _ROWS) and not isinstance(child, _ROWS) and next(child.children(), None) is not None
        found += [child] if is_block else blocks_of(child)
    return found


def recompute_blocks(net: nn.Module) -> None:
    """From now on each block's activations are computed again in the backward pass. Names of weights stay as they are.

    The second time sees what the first one saw: the same random numbers (drop connect, dropout) and autocast, and batch norm's
    running statistics do not move again. So the gradients are the same.

    Raises:
        ValueError: the net has no blocks.
    """
    blocks = blocks_of(net)
    if not blocks:
        raise ValueError(f"{type(net).__name__} has no blocks")
    for block in blocks:
        block.forward = partial(_forward, block)  # type: ignore[method-assign]  # a copy of the net calls the copy's blocks


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _own_buffers(block)


@contextlib.contextmanager
def _own_buffers(block: nn.Module) -> Iterator[None]:
    """What a block changes of its buffers is undone. (Batch norm saves them for its backward pass: it cannot go without.)"""
    before = [(module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)]
    for module, name, buffer in before:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in before:
            setattr(module, name, buffer)
