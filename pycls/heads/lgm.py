"""Large-margin Gaussian mixture, L-GM (Wan, Zhong, Li, Chen, CVPR 2018)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from pycls.heads.codes import MarginCode, MarginKind, TargetCode, TargetKind
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.form import Form
from pycls.heads.head import Head
from pycls.heads.parts import Auxiliary, Margin, Queries, Similarity, Target
from pycls.heads.parts_native import Parts, parts_for
from pycls.heads.prototypes import Prototypes, Recipe
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import AUXILIARIES, HEADS, MARGINS, SIMILARITIES

Covariance = Literal["identity", "diagonal"]


class GaussianRows(Recipe):
    """Means mu and log variances v [K, D] -> rows [-e^-v / 2, e^-v mu] [K, 2 D], and summed [K] -(e^-v mu^2 + v) / 2 and v,
    which is log|Lambda|."""

    @staticmethod
    def make(of: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """As above."""
        (mean, log_variance), width = of, of[0].shape[1]
        parts = parts_for(of)
        if parts is not None:
            return Prototypes(*parts.gaussian(mean, log_variance, out))
        determinants = log_variance.sum(dim=1)
        rows = torch.cat((log_variance, mean), dim=1, out=out)
        half, pulled = rows[:, :width], rows[:, width:]
        pulled.mul_(half.neg_().exp_())
        half.mul_(-0.5)
        return Prototypes(rows, torch.linalg.vecdot(pulled, mean).add_(determinants).mul_(-0.5), determinants)

    @staticmethod
    def pull(of: Sequence[Tensor], rows: Tensor, by: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> None:
        """By e^-v: -by_half / 2 + mu by_pulled - by_constant mu^2 / 2; by v that times -e^-v, - by_constant / 2 +
        by_determinants."""
        mean, (by_rows, by_constant, by_determinants), (by_mean, by_variance) = of[0], by, into
        assert by_rows is not None and by_constant is not None
        parts = parts_for(of)
        if parts is not None:
            parts.gaussian_back(mean, rows, by_rows, by_constant, by_determinants, into)
            return
        half, (by_half, by_pulled), constant = rows[:, : mean.shape[1]], by_rows.chunk(2, dim=1), by_constant[:, None]
        if by_variance is not None:
            by_precision = torch.addcmul(by_pulled, mean, constant, value=-0.5).mul_(mean).sub_(by_half, alpha=0.5)
            rest = -0.5 * by_constant if by_determinants is None else by_determinants - 0.5 * by_constant
            by_variance.copy_(by_precision.mul_(half).mul_(2).add_(rest[:, None]))
        if by_mean is not None:
            by_mean.copy_(torch.addcmul(by_pulled, mean, constant, value=-1).mul_(half).mul_(-2))


class _Squares(torch.autograd.Function):
    """[x^2, x] [N, 2 D] by compiled C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.parts = parts
        return parts.squares(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.parts.squares_back(*ctx.saved_tensors, grad), None


@SIMILARITIES.register("gaussian")
class Gaussian(Similarity):
    """``z_k = -d_k - log|Lambda_k| / 2`` with ``d_k = (x - mu_k)^T Lambda_k^-1 (x - mu_k) / 2``: a Gaussian a class.

    The measure is z itself. With a diagonal covariance, z is linear in [x^2, x] with the rows
    ``[-1/2 Lambda^-1, Lambda^-1 mu]``, which are made anew at each step: twice the arithmetic of a linear head.

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
        self.form = Form() if self.diagonal else Form("distance", 0.5)

    def prototypes(self) -> Prototypes | Recipe:
        """The means; with a diagonal covariance the rows [K, 2 D], what is constant in x, and log|Lambda|."""
        return GaussianRows(self.weight, self.log_variance) if self.diagonal else Prototypes(self.weight)

    def queries(self, features: Tensor) -> Queries:
        """x, or [x^2, x]."""
        if not self.diagonal:
            return Queries(features)
        parts = parts_for([features])
        if parts is not None:
            return Queries(_Squares.apply(features, parts))
        return Queries(torch.cat((features.square(), features), dim=1))

    def to_margin_domain(self, u: Tensor, target: Target) -> Tensor:
        """2 d = -2 u - log|Lambda_y|."""
        return -2 * u if target.log_determinant is None else -2 * u - target.log_determinant

    def from_margin_domain(self, value: Tensor, target: Target) -> Tensor:
        """-d - log|Lambda_y| / 2."""
        return -0.5 * (value if target.log_determinant is None else value + target.log_determinant)

    def target_code(self) -> TargetCode:
        """-(2 d + log|Lambda_y|) / 2."""
        return TargetCode(TargetKind.DISTANCE, 0.0, 0.5)

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

    def forward(self, measure: Tensor, labels: Tensor) -> Tensor:
        """(1 + alpha) d."""
        return measure * (1 + self.alpha)

    def code(self) -> MarginCode:
        """(1 + alpha) d."""
        return MarginCode(MarginKind.MORE_DISTANCE, self.alpha)

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

    def of_mean_logit(self) -> float:
        """-weight."""
        return -self.weight

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
