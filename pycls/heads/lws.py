"""Learnable weight scaling: a linear classifier whose classes have a learned scale each."""

from typing import Any

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form
from pycls.heads.head import Head
from pycls.heads.parts import Prototypes, Queries, Similarity
from pycls.heads.parts_native import Parts, parts_for
from pycls.registry import HEADS, SIMILARITIES


class _Scaled(torch.autograd.Function):
    """f_j w_j [K, D] and f_j b_j [K] by compiled C."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, factor: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(weight, bias, factor)
        ctx.parts = parts
        return parts.scale(weight, factor), factor * bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor, by_numbers: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *ctx.parts.scale_back(*ctx.saved_tensors, by_rows, by_numbers, ctx.needs_input_grad[:3]), None


@SIMILARITIES.register("scaled_linear")
class ScaledLinear(Similarity):
    """``z_j = f_j (w_j . x + b_j)`` with a learned scale f_j of each class, starting at 1.

    Args:
        in_features: D.
        num_classes: K.
    """

    name = "scaled_linear"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).normal_(0.0, 0.01))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.factor = nn.Parameter(torch.ones(num_classes))
        self.form = Form()

    def queries(self, features: Tensor) -> Queries:
        """The features as they are."""
        return Queries(features)

    def prototypes(self) -> Prototypes:
        """f_j w_j and f_j b_j."""
        weight, bias, factor = self.weight, self.bias, self.factor
        assert bias is not None
        parts = parts_for([weight], [bias, factor])
        if parts is not None:
            return Prototypes(*_Scaled.apply(weight, bias, factor, parts))
        return Prototypes(factor[:, None] * weight, factor * bias)


@HEADS.register("lws")
def lws(in_features: int, num_classes: int) -> Head:
    """Learnable weight scaling (Kang et al., ICLR 2020, section 4.1): a second stage learns the scales f alone.

    Args:
        in_features: D.
        num_classes: K.
    """
    return Head(ScaledLinear(in_features, num_classes), None, CrossEntropy())
