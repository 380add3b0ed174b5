"""Large-margin Gaussian mixture, L-GM (Wan, Zhong, Li, Chen, CVPR 2018)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.derived_weight import DerivedWeight, Prototypes
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import Auxiliary, FeatureInput, Margin, Similarity, Target
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import AUXILIARIES, HEADS, MARGINS, SIMILARITIES

Covariance = Literal["identity", "diagonal"]


class GaussianRows(DerivedWeight):
    """Means mu and log variances v [K, D] -> rows [-e^-v / 2, e^-v mu] [K, 2 D], and summed [K] -(e^-v mu^2 + v) / 2 and v,
    which is log|Lambda|."""

    @staticmethod
    def forward(inputs: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """As above."""
        mean, log_variance = inputs
        precision = (-log_variance).exp_()
        scaled = precision * mean
        rows = torch.cat((precision.mul_(-0.5), scaled), dim=1, out=out)
        determinants = log_variance.sum(dim=1)
        return Prototypes(rows, torch.linalg.vecdot(scaled, mean).add_(determinants).mul_(-0.5), determinants)

    @staticmethod
    def backward(
        inputs: Sequence[Tensor], rows: Tensor, grad_outputs: Sequence[Tensor | None], grad_inputs: Sequence[Tensor | None]
    ) -> None:
        """By e^-v: -by_half / 2 + mu by_scaled - by_constant mu^2 / 2; by v that times -e^-v, - by_constant / 2 +
        by_determinants."""
        mean, (by_rows, by_constant, by_determinants), (grad_mean, grad_variance) = inputs[0], grad_outputs, grad_inputs
        assert by_rows is not None and by_constant is not None
        half, (by_half, by_scaled), constant = rows[:, : mean.shape[1]], by_rows.chunk(2, dim=1), by_constant[:, None]
        product = mean * constant  # not by addcmul, which is several times as slow with a column as one of its factors
        gap = by_scaled - product
        if grad_mean is not None:
            torch.mul(half, gap, out=grad_mean).mul_(-2)
        if grad_variance is not None:
            by_precision = gap.add_(product, alpha=0.5).mul_(mean).sub_(by_half, alpha=0.5).mul_(half)
            rest = -0.5 * by_constant if by_determinants is None else by_determinants - 0.5 * by_constant
            torch.add(rest[:, None], by_precision, alpha=2, out=grad_variance)


@SIMILARITIES.register("gaussian")
class Gaussian(Similarity):
    """``z_k = -d_k - log|Lambda_k| / 2`` with ``d_k = (x - mu_k)^T Lambda_k^-1 (x - mu_k) / 2``: a Gaussian a class.

    The score is z itself. With a diagonal covariance, z is linear in [x^2, x] with the rows
    ``[-1/2 Lambda^-1, Lambda^-1 mu]``, which are derived at each step: twice the arithmetic of a linear head.

    Args:
        in_features: D.
        num_classes: K.
        covariance: identity, or a learned diagonal one a class.
    """

    name = "gaussian"
    domain = "distance"
    log_likelihood = True

    def __init__(self, in_features: int, num_classes: int, covariance: Covariance = "identity") -> None:
        super().__init__()
        if covariance not in ("identity", "diagonal"):
            raise ValueError(f"covariance is identity or diagonal, not {covariance!r}")
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, in_features)))
        self.diagonal = covariance == "diagonal"
        if self.diagonal:
            self.log_variance = nn.Parameter(torch.zeros(num_classes, in_features))
        self.half_products = not self.diagonal  # x^2 / v, 2 x mu / v and mu^2 / v would be rounded, and then nearly cancel
        self.spec = ScoreSpec() if self.diagonal else ScoreSpec("distance", 0.5)

    def prototypes(self) -> Prototypes | DerivedWeight:
        """The means; with a diagonal covariance the rows [K, 2 D], what is constant in x, and log|Lambda|."""
        return GaussianRows(self.weight, self.log_variance) if self.diagonal else Prototypes(self.weight)

    def inputs(self, features: Tensor) -> FeatureInput:
        """x, or [x^2, x]."""
        return FeatureInput(torch.cat((features.square(), features), dim=1) if self.diagonal else features)

    def margin_map(self, target: Target) -> tuple[float, Tensor | float]:
        """-(2 d + log|Lambda_y|) / 2 of the squared distance 2 d."""
        return -0.5, 0.0 if target.log_determinant is None else -0.5 * target.log_determinant

    def extra_repr(self) -> str:
        """covariance."""
        return "diagonal covariance" if self.diagonal else "identity covariance"


@MARGINS.register("scaled_distance")
class ScaledDistance(Margin):
    """``(1 + alpha) d`` for the target (L-GM, equation 17).

    Args:
        alpha: the relative margin, >= 0.

    Raises:
        ValueError: if alpha is negative.
    """

    name = "scaled_distance"
    domain = "distance"

    def __init__(self, alpha: Annotated[float, NOT_NEGATIVE] = 0.1) -> None:
        super().__init__()
        self.alpha = alpha

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """(1 + alpha) d."""
        return value * (1 + self.alpha), torch.full_like(value, 1 + self.alpha)

    def extra_repr(self) -> str:
        """alpha."""
        return f"alpha={self.alpha}"


@AUXILIARIES.register("likelihood")
class Likelihood(Auxiliary):
    """``weight (d_y + log|Lambda_y| / 2)``, mean over the batch: the features' negative log-likelihood (L-GM, equation 9).

    Args:
        weight: lambda.
    """

    term = "likelihood"
    name = "likelihood"
    needs_likelihood = True

    def __init__(self, weight: Annotated[float, NOT_NEGATIVE] = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Tensor, labels: Tensor, logit: Tensor, weights: Tensor) -> Tensor:
        """-logit, which is d_y + log|Lambda_y| / 2."""
        return torch.dot(logit, -self.weight * weights)

    def extra_repr(self) -> str:
        """weight."""
        return f"weight={self.weight}"


@HEADS.register("lgm")
def lgm(
    in_features: int,
    num_classes: int,
    alpha: Annotated[float, NOT_NEGATIVE] = 0.1,
    likelihood_weight: Annotated[float, NOT_NEGATIVE] = 0.1,
    covariance: Covariance = "identity",
) -> Head:
    """L-GM: classification by Gaussians with a margin on the target's distance, and their likelihood (equations 9, 17).

    Args:
        in_features: D.
        num_classes: K.
        alpha: the relative margin on the target's distance in training.
        likelihood_weight: lambda of the likelihood term.
        covariance: identity, or a learned diagonal one a class.
    """
    similarity = Gaussian(in_features, num_classes, covariance)
    return Head(similarity, ScaledDistance(alpha), CrossEntropy(), [Likelihood(likelihood_weight)])
