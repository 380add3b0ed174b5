"""How many classes a pass over the prototypes takes at a time."""

import functools

import torch

CHUNK_ELEMENTS, LOGITS_ELEMENTS = 1 << 20, 1 << 22
"""Elements of W in an automatic chunk, 4 MB that stay in a processor's cache between the chunk's passes; and of its logits."""

ALIGNMENT, LEAST = 128, 1024
"""On CUDA a chunk's first class is a multiple of the one, so that its rows are read in whole cache lines; it has at least so
many classes as the other: fewer do not keep a device busy."""

L2_BYTES = 50 << 20
"""The second-level cache of a CUDA device of which nothing else is known: an H100's."""


def chunks(num_classes: int, num_centers: int, x: torch.Tensor, chunk: int) -> list[tuple[int, int]]:
    """[low, high) of each chunk of classes.

    Args:
        num_classes: K.
        num_centers: prototypes a class.
        x: features [N, D].
        chunk: classes of a chunk; 0 for as many as the cache of x's device holds. What fits twice is not cut.
    """
    samples, width = x.size(0), x.size(1) * num_centers
    if chunk <= 0 and not x.is_cuda and num_classes * max(width, samples) <= CHUNK_ELEMENTS:
        return [(0, num_classes)]
    if chunk <= 0:
        if x.is_cuda:
            chunk = _classes_on_cuda(num_centers, samples, x.device)
        else:
            chunk = max(256, min(CHUNK_ELEMENTS // max(width, 1), LOGITS_ELEMENTS // max(samples, 1)))
        chunk = max(num_classes, 1) if num_classes <= 2 * chunk else chunk
    return [(low, min(low + chunk, num_classes)) for low in range(0, num_classes, chunk)]


def aligned(classes: int) -> int:
    """A row's length, at least so many, with which each row of half-precision numbers starts where tensor cores load it."""
    return -(-classes // 16) * 16


def _classes_on_cuda(num_centers: int, samples: int, device: torch.device) -> int:
    """Classes whose products in float32, [N, c * centers], are as large as the device's second-level cache.

    Half of it would leave room for the operands. But a chunk costs about ten launches a step, which should take the host
    longer than the device needs for half as large products: then the device waits. (Estimated for an H100, not measured.)
    """
    known = L2_BYTES if torch.compiler.is_compiling() else _l2_bytes(device)  # compilers do not look into properties
    return max(LEAST, known // 4 // max(samples * num_centers, 1) // ALIGNMENT * ALIGNMENT)


@functools.cache
def _l2_bytes(device: torch.device) -> int:
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or L2_BYTES
