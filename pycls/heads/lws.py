"""Learnable weight scaling: a linear classifier whose classes have a learned scale each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.derived_weight import DerivedWeight, Prototypes
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import Similarity
from pycls.registry import HEADS, SIMILARITIES


class ScaledRows(DerivedWeight):
    """f_j w_j [K, D] and f_j b_j [K] of weights w, biases b and factors f."""

    @staticmethod
    def forward(inputs: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """The products."""
        weight, bias, factor = inputs
        return Prototypes(torch.mul(weight, factor[:, None], out=out), factor * bias)

    @staticmethod
    def backward(
        inputs: Sequence[Tensor], rows: Tensor, grad_outputs: Sequence[Tensor | None], grad_inputs: Sequence[Tensor | None]
    ) -> None:
        """The product rule."""
        (weight, bias, factor), (by_rows, by_bias, _), (grad_weight, grad_bias, grad_factor) = inputs, grad_outputs, grad_inputs
        assert by_rows is not None and by_bias is not None
        if grad_factor is not None:
            torch.add(torch.linalg.vecdot(by_rows, weight), by_bias * bias, out=grad_factor)
        if grad_weight is not None:
            torch.mul(by_rows, factor[:, None], out=grad_weight)
        if grad_bias is not None:
            torch.mul(by_bias, factor, out=grad_bias)


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
        self.spec = ScoreSpec()

    def prototypes(self) -> DerivedWeight:
        """f_j w_j and f_j b_j."""
        assert self.bias is not None
        return ScaledRows(self.weight, self.bias, self.factor)


@HEADS.register("lws")
def lws(in_features: int, num_classes: int) -> Head:
    """Learnable weight scaling (Kang et al., ICLR 2020, section 4.1): a second stage learns the scales f alone.

    Args:
        in_features: D.
        num_classes: K.
    """
    return Head(ScaledLinear(in_features, num_classes), None, CrossEntropy())
