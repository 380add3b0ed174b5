"""How many classes a pass over the prototypes takes at a time on a CUDA device."""

import functools

import torch

ALIGNED = 128
"""A chunk's first class is a multiple of it, so that the rows of a chunk are read in whole cache lines."""

LEAST = 1024
"""Classes: fewer do not keep a device busy."""

L2_BYTES = 50 << 20
"""The second-level cache of the device for which nothing else is known: an H100's."""


def aligned(classes: int) -> int:
    """A row's length, at least so many, with which each row of half-precision numbers starts where tensor cores can load it."""
    return -(-classes // 16) * 16


def classes_a_chunk(rows_a_class: int, samples: int, device: torch.device) -> int:
    """Classes whose products in float32, [N, c * rows a class], are as large as the device's second-level cache.

    Half of it would leave room for the operands. But a chunk costs about ten launches a step, which should take the host
    longer than the device needs for half as large products: then the device waits. (Reckoned for an H100, not measured.)
    """
    elements = _l2_bytes(device) // 4
    return max(LEAST, elements // max(samples * rows_a_class, 1) // ALIGNED * ALIGNED)


def _l2_bytes(device: torch.device) -> int:
    if torch.compiler.is_compiling():  # which does not look into properties of devices
        return L2_BYTES
    return _asked(device)


@functools.cache
def _asked(device: torch.device) -> int:
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or L2_BYTES
