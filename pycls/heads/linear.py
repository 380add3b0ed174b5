"""The linear similarity ``z = w . x + b``, and the plain softmax head on it."""

import math

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.loss import ClosedForm
from pycls.heads.ops.spec import TINY, ScoreSpec
from pycls.heads.parts import Domain, Similarity, Target
from pycls.registry import HEADS, SIMILARITIES


@SIMILARITIES.register("linear")
class Linear(Similarity):
    """Inner product with each prototype: ``z_j = w_j . x + b_j``.

    Without a bias it is ``|w_j| |x| cos``, on whose cosine a margin may act (L-Softmax).

    Args:
        in_features: D.
        num_classes: K.
        bias: whether each class has a learned bias, starting at 0.
    """

    name = "linear"
    domain: Domain | None  # type: ignore[misc]

    def __init__(self, in_features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        # pycls's initialisation of its classifier
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).normal_(0.0, 0.01))
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_classes))
        self.spec = ScoreSpec()
        self.domain = None if bias else "cosine"
        self.needs_squared_norm = self.needs_feature_norm = not bias

    def margin_map(self, target: Target) -> tuple[Tensor, float]:
        """|w| |x| cos."""
        assert target.feature_norm is not None and target.squared_norm is not None
        product: Tensor = ClosedForm.apply(_norm_product, target.feature_norm, target.squared_norm)
        return product, 0.0


def _norm_product(feature_norm: Tensor, squared_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|x| |w| of |x| and |w|^2, and its slopes; a zero prototype has none."""
    norm = squared_norm.clamp(min=TINY).sqrt_()
    divisor = torch.threshold(norm, TINY**0.5, math.inf)
    return feature_norm * norm, norm, (0.5 * feature_norm).div_(divisor)


@HEADS.register("softmax")
def softmax(in_features: int, num_classes: int, bias: bool = True) -> Head:
    """The linear classifier with cross entropy: the head that every other one is compared with.

    Args:
        in_features: D.
        num_classes: K.
        bias: whether each class has a learned bias.
    """
    return Head(Linear(in_features, num_classes, bias), None, CrossEntropy())
