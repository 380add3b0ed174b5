"""t-vMF similarity (Kobayashi, CVPR 2021)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.codes import TargetCode, TargetKind
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form, Link
from pycls.heads.head import Head
from pycls.heads.parts import Queries, Similarity, Target
from pycls.heads.scale import Scale
from pycls.ranges import Range
from pycls.registry import HEADS, SIMILARITIES


class _StudentT(Link):
    """z = s phi(u), phi = (1 + u) / (1 + kappa (1 - u)) - 1 = 1 - (1 + 2 kappa) d / (1 + kappa d) with d = 1 - u.

    d is exact where u is close to 1 and the slope is steep; that is where precision is needed.
    """

    def __init__(self, kappa: float) -> None:
        self.kappa = kappa

    @property
    def compiled(self) -> tuple[int, float]:
        """Number and kappa."""
        return 2, self.kappa

    def apply_(self, u: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        d = u.neg_().add_(1)
        d.div_(torch.add(u.new_ones(()), d, alpha=self.kappa))
        return d.mul_(-1 - 2 * self.kappa).add_(1).mul_(scale)

    def pull_(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        # dphi/du = (1 + 2 kappa) / (1 + kappa (1 - u))^2 = (1 + kappa (1 + phi))^2 / (1 + 2 kappa)
        assert scale is not None
        root = (scale / (1 + 2 * self.kappa)).sqrt()  # of what is left of the slope: it goes into both factors
        above = torch.addcmul((1 + self.kappa) * root, z, root / scale, value=self.kappa)
        return grad.mul_(above).mul_(above)

    def measure(self, z: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        k, phi = self.kappa, z / scale
        return torch.add(phi.new_full((), k), phi, alpha=1 + k).div_(phi.mul_(k).add_(1 + k))


@SIMILARITIES.register("tvmf")
class TVMF(Similarity):
    """``z_j = s ((1 + cos) / (1 + kappa (1 - cos)) - 1)``, with ``s = softplus(s_) + 1`` and s_ learned from 0.

    kappa 0 is the cosine; a larger one concentrates the similarity about its prototype.

    Args:
        in_features: D.
        num_classes: K.
        kappa: > -1/2.

    Raises:
        ValueError: if kappa is not above -1/2, where the denominator would vanish.
    """

    name = "tvmf"
    domain = "cosine"

    def __init__(self, in_features: int, num_classes: int, kappa: Annotated[float, Range(-0.5, open_left=True)] = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).normal_(0.0, in_features**-0.5))
        self.kappa = kappa
        self.form = Form("cosine", link=_StudentT(kappa))
        self.scaling = Scale(0.0, "softplus", num_classes)

    @property
    def scale(self) -> Tensor:
        """s, 0-dim."""
        return self.scaling()

    def link_scale(self) -> Tensor:
        """s."""
        return self.scale

    def queries(self, features: Tensor) -> Queries:
        """x / |x|."""
        return Queries(features, length=1.0)

    def to_margin_domain(self, u: Tensor, target: Target) -> Tensor:
        """The measure is the cosine."""
        return u

    def from_margin_domain(self, value: Tensor, target: Target) -> Tensor:
        """The measure is the cosine."""
        return value

    def target_code(self) -> TargetCode:
        """The measure is the cosine: the length is 1."""
        return TargetCode(TargetKind.OVER_LENGTH)

    def link(self, u: Tensor) -> Tensor:
        """s phi(u)."""
        d = 1 - u
        return self.scale * (1 - (1 + 2 * self.kappa) * d / (1 + self.kappa * d))

    def extra_repr(self) -> str:
        """kappa."""
        return f"kappa={self.kappa}"


@HEADS.register("tvmf")
def tvmf(in_features: int, num_classes: int, kappa: Annotated[float, Range(-0.5, open_left=True)] = 16.0) -> Head:
    """The t-vMF similarity with cross entropy (Kobayashi, CVPR 2021, equation 8); no bias, no margin.

    Args:
        in_features: D.
        num_classes: K.
        kappa: concentration, > -1/2; the paper's are -0.3, 4, 16 and 64.
    """
    return Head(TVMF(in_features, num_classes, kappa), None, CrossEntropy())
