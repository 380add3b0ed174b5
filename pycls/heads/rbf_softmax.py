"""RBF-Softmax: a radial basis function of the distance to each prototype (Zhang et al., ECCV 2020)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.codes import TargetCode, TargetKind
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form, Link
from pycls.heads.head import Head
from pycls.heads.parts import Queries, Similarity, Target
from pycls.ranges import POSITIVE
from pycls.registry import HEADS, SIMILARITIES

_TO_BASE_2 = math.log2(math.e)


class _Exponential(Link):
    """z = exp(u), in place."""

    compiled = (1, 0.0)

    def apply_(self, u: Tensor, scale: Tensor | None) -> Tensor:
        return u.mul_(_TO_BASE_2).exp2_()  # several times as quick as the natural exponential

    def pull_(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        return grad.mul_(z)


@SIMILARITIES.register("rbf")
class RadialBasis(Similarity):
    """``z_j = s exp(-|x - w_j|^2 / gamma)``, by ``|x - w|^2 = |x|^2 - 2 x.w + |w|^2``.

    The measure is ``u = ln s - |x - w|^2 / gamma`` and the logit ``exp(u)``.

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
        self.form = Form("distance", 1 / gamma, math.log(scale), _Exponential())
        self.scale, self.gamma = scale, gamma

    def queries(self, features: Tensor) -> Queries:
        """The features as they are."""
        return Queries(features)

    def to_margin_domain(self, u: Tensor, target: Target) -> Tensor:
        """|x - w|^2 = gamma (ln s - u)."""
        return self.gamma * (math.log(self.scale) - u)

    def from_margin_domain(self, value: Tensor, target: Target) -> Tensor:
        """ln s - |x - w|^2 / gamma."""
        return math.log(self.scale) - value / self.gamma

    def target_code(self) -> TargetCode:
        """ln s - |x - w|^2 / gamma."""
        return TargetCode(TargetKind.DISTANCE, self.form.constant, self.form.rate)

    def link(self, u: Tensor) -> Tensor:
        """exp(u)."""
        return u.exp()

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
