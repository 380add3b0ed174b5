"""Learnable weight scaling: a linear classifier whose classes have a learned scale each."""

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form
from pycls.heads.head import Head
from pycls.heads.parts import Queries, Similarity
from pycls.registry import HEADS, SIMILARITIES


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

    def prototypes(self) -> tuple[Tensor, Tensor | None]:
        """f_j w_j and f_j b_j."""
        assert self.bias is not None
        return self.factor[:, None] * self.weight, self.factor * self.bias


@HEADS.register("lws")
def lws(in_features: int, num_classes: int) -> Head:
    """Learnable weight scaling (Kang et al., ICLR 2020, section 4.1): a second stage learns the scales f alone.

    Args:
        in_features: D.
        num_classes: K.
    """
    return Head(ScaledLinear(in_features, num_classes), None, CrossEntropy())
