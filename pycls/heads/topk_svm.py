"""Top-k support vector machines: hard (Lapin et al., 2015) and smooth (Berrada, Zisserman, Kumar, ICLR 2018)."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.ops.polynomials import log_ratio_of_others
from pycls.heads.ops.topk import topk_losses
from pycls.heads.parts import LogitsCriterion
from pycls.ranges import NOT_NEGATIVE, POSITIVE, Range
from pycls.registry import CRITERIA, HEADS

MANY_CLASSES = 50
"""From so many classes on, the top 5 are asked for, unless told otherwise."""


def _places(k: int, num_classes: int) -> int:
    """k, chosen by the number of classes where it is 0."""
    k = k or (5 if num_classes >= MANY_CLASSES else 1)
    if k >= num_classes:
        raise ValueError(f"the top {k} of {num_classes} classes is always right: k must be below the number of classes")
    return k


@CRITERIA.register("hard_topk")
class HardTopK(LogitsCriterion):
    """``max(0, mean of the top k of (s_j + alpha), j not y, - (sum of their top k - 1 + s_y) / k)``.

    The sums have k - 1 scores in common: it is ``max(0, alpha + (s_[k] - s_y) / k)`` with the k-th largest other score.
    (Berrada et al., ICLR 2018, equation 4.)

    Args:
        k: places that count as right, below the number of classes; 0 for 5, or 1 with fewer than 50 classes, of which the
            top 5 say little.
        alpha: margin.

    Raises:
        ValueError: if k is negative, not below the number of classes, or alpha negative.
    """

    name = "hard_topk"

    def __init__(self, k: Annotated[int, NOT_NEGATIVE] = 0, alpha: Annotated[float, NOT_NEGATIVE] = 1.0) -> None:
        super().__init__()
        self.k, self.alpha = k, alpha

    def check(self, num_classes: int) -> None:
        """k < K, chosen by K where it is 0."""
        self.k = _places(self.k, num_classes)

    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """[N]."""
        native = topk_losses(logits, target, labels, self.k, self.alpha)
        if native is not None:
            return native
        rival = _KthOther.apply(logits, labels, self.k)
        return (self.alpha + (rival - target) / self.k).clamp(min=0)

    def extra_repr(self) -> str:
        """k, alpha."""
        return f"k={self.k}, alpha={self.alpha}"


class _KthOther(torch.autograd.Function):
    """The k-th largest score [N] of the classes that are not the label."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, k: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        top, places = logits.scatter(1, labels[:, None], -torch.inf).topk(k, dim=1)
        ctx.save_for_backward(places[:, k - 1 :])
        ctx.shape = logits.shape
        return top[:, k - 1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (place,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).scatter_(1, place, grad[:, None]), None, None


@CRITERIA.register("smooth_topk")
class SmoothTopK(LogitsCriterion):
    """The smooth top-k SVM (Berrada, Zisserman, Kumar, ICLR 2018, equation 9), with exact polynomials at any tau.

    ``tau ln(1 + exp(alpha / tau) sigma_k / (sigma_{k-1} exp(s_y / (k tau))))``, sigma_i the elementary symmetric polynomial
    of ``exp(s_j / (k tau))`` over j not y. Where a sample's k-th and k+1-th scores are so far apart that smoothing changes
    nothing (``s_[k] - s_[k+1] >= k tau ln threshold``) the authors take the hard loss instead, and so does this; the
    polynomials here do not need it, and ``threshold`` 0 leaves it out.

    Args:
        k: places that count as right, below the number of classes; 0 for 5, or 1 with fewer than 50 classes, of which the
            top 5 say little.
        tau: temperature; towards 0 it becomes the hard loss.
        alpha: margin.
        threshold: see above; the authors' is 1000.

    Raises:
        ValueError: if k is negative, not below the number of classes, tau not positive, or alpha negative.
    """

    name = "smooth_topk"

    def __init__(
        self,
        k: Annotated[int, NOT_NEGATIVE] = 0,
        tau: Annotated[float, POSITIVE] = 1.0,
        alpha: Annotated[float, NOT_NEGATIVE] = 1.0,
        threshold: Annotated[float, Range(1, open_left=True, also=(0,))] = 1000.0,
    ) -> None:
        super().__init__()
        self.k, self.tau, self.alpha, self.threshold = k, tau, alpha, threshold

    def check(self, num_classes: int) -> None:
        """k < K, chosen by K where it is 0."""
        self.k = _places(self.k, num_classes)

    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """[N]."""
        k, tau = self.k, self.tau
        native = topk_losses(logits, target, labels, k, self.alpha, tau, self.threshold)
        if native is not None:
            return native
        ratio, kth, top = log_ratio_of_others(logits, labels, k, k * tau)
        smooth = -tau * F.logsigmoid(target / (k * tau) - ratio - self.alpha / tau)
        if not self.threshold:
            return smooth
        # the k-th and the next of all scores: the target's is among them where it is between the others'
        score, places = target.detach(), top.unbind(dim=1)
        upper = score.clamp(min=places[k - 1], max=places[k - 2] if k > 1 else None)
        lower = score.clamp(min=places[k] if len(places) > k else None, max=places[k - 1])
        apart = upper - lower >= k * tau * math.log(self.threshold)
        hard = (self.alpha + (kth - target) / k).clamp(min=0)
        return torch.where(apart, hard, smooth)

    def extra_repr(self) -> str:
        """k, tau, alpha."""
        return f"k={self.k}, tau={self.tau}, alpha={self.alpha}"


@HEADS.register("smooth_topk")
def smooth_topk(
    in_features: int,
    num_classes: int,
    k: Annotated[int, NOT_NEGATIVE] = 0,
    tau: Annotated[float, POSITIVE] = 1.0,
    alpha: Annotated[float, NOT_NEGATIVE] = 1.0,
) -> Head:
    """The smooth top-k SVM on a linear classifier (Berrada, Zisserman, Kumar, ICLR 2018, equation 9).

    Args:
        in_features: D.
        num_classes: K.
        k: places that count as right; 0 for 5, or 1 with fewer than 50 classes.
        tau: temperature.
        alpha: margin.
    """
    return Head(Linear(in_features, num_classes), None, SmoothTopK(k, tau, alpha))


@HEADS.register("hard_topk")
def hard_topk(
    in_features: int, num_classes: int, k: Annotated[int, NOT_NEGATIVE] = 0, alpha: Annotated[float, NOT_NEGATIVE] = 1.0
) -> Head:
    """The hard top-k SVM on a linear classifier (Lapin, Hein, Schiele, NIPS 2015; Berrada et al., ICLR 2018, equation 4).

    Args:
        in_features: D.
        num_classes: K.
        k: places that count as right; 0 for 5, or 1 with fewer than 50 classes.
        alpha: margin.
    """
    return Head(Linear(in_features, num_classes), None, HardTopK(k, alpha))
