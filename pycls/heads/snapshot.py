"""What a training step reads of a tensor that it also moves itself, such as a schedule's counter."""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("pycls::snapshot", mutates_args=())
def _copied(values: Tensor) -> Tensor:
    return values.clone()


@_copied.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _backward(context: Any, grad: Tensor) -> Tensor:
    return grad


_copied.register_autograd(_backward)


def snapshot(values: Tensor) -> Tensor:
    """The values as they are now, also for a backward pass that comes after they have moved.

    ``torch.compile`` saves memory by computing again, in the backward pass, what follows from a tensor by simple operations,
    and does not see that the tensor has moved since (pytorch/pytorch#197039): gradients would be silently wrong. It keeps the
    result of an operator that it does not know. Differentiable.
    """
    return _copied(values) if torch.compiler.is_compiling() else values
