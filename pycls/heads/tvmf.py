"""t-vMF similarity (Kobayashi, CVPR 2021)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.spec import LogitTransform, ScoreSpec
from pycls.heads.parts import FeatureInput, Similarity, Target
from pycls.heads.scale import Scale
from pycls.ranges import Range
from pycls.registry import HEADS, SIMILARITIES


class StudentT(LogitTransform):
    """z = s phi(u), phi = (1 + u) / (1 + kappa (1 - u)) - 1 = 1 - (1 + 2 kappa) d / (1 + kappa d) with d = 1 - u.

    d is exact where u is close to 1 and the slope is steep; that is where precision is needed.
    """

    kernel_id = 2

    def __init__(self, kappa: float) -> None:
        self.kappa = self.kernel_constant = kappa

    def forward_(self, score: Tensor, scale: Tensor | None) -> Tensor:
        """s phi(u)."""
        assert scale is not None
        d = score.neg_().add_(1)
        d.div_(torch.add(score.new_ones(()), d, alpha=self.kappa))
        return d.mul_(-1 - 2 * self.kappa).add_(1).mul_(scale)

    def backward_(self, grad: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
        """By phi, whose slope it is a function of."""
        # dphi/du = (1 + 2 kappa) / (1 + kappa (1 - u))^2 = (1 + kappa (1 + phi))^2 / (1 + 2 kappa)
        assert scale is not None
        root = (scale / (1 + 2 * self.kappa)).sqrt()  # of what is left of the slope: it goes into both factors
        above = torch.addcmul((1 + self.kappa) * root, logits, root / scale, value=self.kappa)
        return grad.mul_(above).mul_(above)

    def score_of(self, logits: Tensor, scale: Tensor | None) -> Tensor:
        """The cosine."""
        assert scale is not None
        k, phi = self.kappa, logits / scale
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
        self.spec = ScoreSpec("cosine", transform=StudentT(kappa))
        self.scaling = Scale(0.0, "softplus", num_classes)

    @property
    def scale(self) -> Tensor:
        """s, 0-dim."""
        return self.scaling()

    def logit_scale(self) -> Tensor:
        """s."""
        return self.scale

    def inputs(self, features: Tensor) -> FeatureInput:
        """x / |x|."""
        return FeatureInput(features, target_norm=1.0)

    def margin_map(self, target: Target) -> tuple[float, float]:
        """The score is the cosine."""
        return 1.0, 0.0

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
