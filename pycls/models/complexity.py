"""How large a model is: multiply-adds, parameters and activations, counted as pycls counts them.

pycls's rules (its ``*_cx`` functions), by which the Model Zoo's tables were made, for one image:

- a convolution: flops k_h k_w w_in w_out h w / groups (+ w_out h w with a bias), acts w_out h w, with h, w of its output;
- a linear layer: flops w_in w_out (+ w_out with a bias) and acts w_out, at each position it is applied to;
- max and average pooling with a window: acts w h w. Normalisation, activations and global pooling: nothing.

A flop is one multiply-add.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pycls.models.classifier import Classifier


class Complexity(NamedTuple):
    """Size of a model: multiply-adds for one image, parameters, and elements that the counted layers put out."""

    flops: int
    params: int
    acts: int

    def __str__(self) -> str:
        return f"params {self.params:,}   flops {self.flops:,} (multiply-adds)   activations {self.acts:,}"


def complexity(model: nn.Module, in_channels: int, image_size: int) -> Complexity:
    """Counts a model for one image of [in_channels, image_size, image_size].

    The pass runs in evaluation mode on a copy without storage (the meta device): it computes nothing, takes no memory
    and leaves the model as it was. A module that computes with raw parameters, such as a head, says what it costs with
    a method ``complexity(input_shape) -> (flops, acts)``, where ``input_shape`` is its first argument's shape with a
    batch of one; its word stands for all that is within it. A head with that method is asked and not run.

    Args:
        model: images float [1, C, H, W] -> anything; a ``Classifier`` or a backbone.
        in_channels: channels of an image.
        image_size: side of an image in pixels.
    """
    ghost = _without_storage(model).eval()
    counts: list[tuple[int, int]] = []
    _add_hooks(ghost, counts)
    images = torch.empty(1, in_channels, image_size, image_size, device="meta")
    with torch.no_grad():
        if isinstance(ghost, Classifier) and _own_count(ghost.head):
            # a head's maths may need a real device, such as autocast's
            counts.append(_own_count(ghost.head)(tuple(ghost.features(images).shape)))
        else:
            ghost(images)
    flops, acts = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return Complexity(flops, sum(p.numel() for p in model.parameters()), acts)


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device that never copies its weights."""
    known: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    known |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, known).to("meta")


def _add_hooks(module: nn.Module, counts: list[tuple[int, int]]) -> None:
    """Hooks that append (flops, acts) at every call of a counted layer in ``module``."""
    own = _own_count(module)
    count = _COUNTERS.get(type(module))
    if own is not None:
        module.register_forward_pre_hook(lambda _, inputs: counts.append(own(tuple(inputs[0].shape))))
        return
    if count is not None:
        module.register_forward_hook(lambda layer, _, output: counts.append(count(layer, output)))
    for child in module.children():
        _add_hooks(child, counts)


def _own_count(module: nn.Module) -> Any:
    """The module's method ``complexity``, or None."""
    return getattr(module, "complexity", None)


def _conv(layer: Any, output: Tensor) -> tuple[int, int]:
    acts = output.numel()
    flops = acts * layer.in_channels // layer.groups
    for side in layer.kernel_size:
        flops *= side
    return flops + (0 if layer.bias is None else acts), acts


def _linear(layer: Any, output: Tensor) -> tuple[int, int]:
    acts = output.numel()
    return acts * layer.in_features + (0 if layer.bias is None else acts), acts


def _pool(_: Any, output: Tensor) -> tuple[int, int]:
    return 0, output.numel()


_COUNTERS: dict[type[nn.Module], Callable[[Any, Tensor], tuple[int, int]]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
}
