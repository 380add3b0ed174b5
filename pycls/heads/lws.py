"""Learnable weight scaling: a linear classifier whose classes have a learned scale each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form
from pycls.heads.head import Head
from pycls.heads.parts import Queries, Similarity
from pycls.heads.parts_native import parts_for
from pycls.heads.prototypes import Prototypes, Recipe
from pycls.registry import HEADS, SIMILARITIES


class ScaledRows(Recipe):
    """f_j w_j [K, D] and f_j b_j [K] of weights w, biases b and factors f."""

    @staticmethod
    def make(of: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """The products."""
        weight, bias, factor = of
        parts = parts_for([weight], [bias, factor])
        rows = parts.scale(weight, factor, out=out) if parts else torch.mul(weight, factor[:, None], out=out)
        return Prototypes(rows, factor * bias)

    @staticmethod
    def pull(of: Sequence[Tensor], rows: Tensor, by: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> None:
        """The products' rule."""
        (weight, bias, factor), (by_rows, by_numbers, _), (by_weight, by_bias, by_factor) = of, by, into
        assert by_rows is not None and by_numbers is not None
        parts = parts_for([weight], [bias, factor])
        if parts is not None:
            parts.scale_back(of, by_rows, by_numbers, into)
            return
        if by_factor is not None:
            by_factor.copy_((by_rows * weight).sum(dim=1).add_(by_numbers * bias))
        if by_weight is not None:
            by_weight.copy_(by_rows * factor[:, None])
        if by_bias is not None:
            by_bias.copy_(by_numbers * factor)


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

    def prototypes(self) -> Recipe:
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
