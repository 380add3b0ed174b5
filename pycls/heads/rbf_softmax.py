"""RBF-Softmax: a radial basis function of the distance to each prototype (Zhang et al., ECCV 2020)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.spec import LogitTransform, ScoreSpec
from pycls.heads.parts import Similarity, Target
from pycls.ranges import POSITIVE
from pycls.registry import HEADS, SIMILARITIES

_TO_BASE_2 = math.log2(math.e)


class Exponential(LogitTransform):
    """z = exp(u), in place."""

    kernel_id = 1

    def forward_(self, score: Tensor, scale: Tensor | None) -> Tensor:
        """exp(u)."""
        return score.mul_(_TO_BASE_2).exp2_()  # several times as quick as the natural exponential

    def backward_(self, grad: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
        """exp(u) is its own slope."""
        return grad.mul_(logits)


@SIMILARITIES.register("rbf")
class RadialBasis(Similarity):
    """``z_j = s exp(-|x - w_j|^2 / gamma)``, by ``|x - w|^2 = |x|^2 - 2 x.w + |w|^2``.

    The score is ``u = ln s - |x - w|^2 / gamma`` and the logit ``exp(u)``.

    Args:
        in_features: D.
        num_classes: K.
        scale: s > 0, the logit of a feature that coincides with its prototype.
        gamma: squared distance at which a logit has fallen to s / e; > 0. Initial distances must be of this order:
            far from every prototype all kernels vanish, and with them the gradient.

    Raises:
        ValueError: if scale or gamma is not positive.
    """

    name = "rbf"
    domain = "distance"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: Annotated[float, POSITIVE] = 35.0,
        gamma: Annotated[float, POSITIVE] = 16.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, in_features)))
        self.spec = ScoreSpec("distance", 1 / gamma, math.log(scale), Exponential())
        self.scale, self.gamma = scale, gamma

    def margin_map(self, target: Target) -> tuple[float, float]:
        """ln s - |x - w|^2 / gamma."""
        return -self.spec.rate, self.spec.constant

    def extra_repr(self) -> str:
        """scale, gamma."""
        return f"scale={self.scale}, gamma={self.gamma}"


@HEADS.register("rbf_softmax")
def rbf_softmax(
    in_features: int, num_classes: int, scale: Annotated[float, POSITIVE] = 35.0, gamma: Annotated[float, POSITIVE] = 16.0
) -> Head:
    """RBF-Softmax (Zhang, Zhao, Qiao, Li, ECCV 2020, equation 8): ``s exp(-d^2 / gamma)`` in training and inference.

    Args:
        in_features: D.
        num_classes: K.
        scale: s, the largest logit.
        gamma: the squared distance at which a logit has fallen to s / e.
    """
    return Head(RadialBasis(in_features, num_classes, scale, gamma), None, CrossEntropy())
