"""What the heads' compiled C can work with."""

import torch
from torch import Tensor

from pycls.runtime.native import WITH_MEMORY

ELEMENTS_A_THREAD = 1 << 13
"""Fewer numbers than this are not worth another thread."""


def threads_for(elements: int) -> int:
    """How many are worth waking for so many numbers."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_A_THREAD))


def plain(*operands: Tensor | None) -> bool:
    """Whether all are float32 numbers in adjacent memory of the processor."""
    return all(
        v is None or (type(v) in WITH_MEMORY and v.dtype is torch.float32 and v.is_cpu and v.is_contiguous()) for v in operands
    )
