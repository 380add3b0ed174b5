"""Ring loss (Zheng, Pal, Savvides, CVPR 2018)."""

from typing import Annotated, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.ops.spec import TINY
from pycls.heads.parts import Auxiliary, norm
from pycls.heads.snapshot import snapshot
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import AUXILIARIES, HEADS

Variant = Literal["l2", "l1", "relative"]


@AUXILIARIES.register("ring")
class RingLoss(Auxiliary):
    """Pulls the features' norms to one learned radius: ``weight / 2`` times the mean of ``(|x| - R)^2`` (equation 2).

    R starts at the mean norm of the first batch that has a target. Variants: ``l1`` is ``weight`` times smooth L1 of the
    difference; ``relative`` divides l2's by the batch's mean norm, which makes it independent of the features' size.

    Args:
        weight: lambda.
        variant: l2, l1 or relative.

    Raises:
        ValueError: if weight is negative or there is no such variant.
    """

    term = "ring"
    name = "ring"
    started: Tensor

    def __init__(self, weight: Annotated[float, NOT_NEGATIVE] = 0.01, variant: Variant = "l2") -> None:
        super().__init__()
        if variant not in ("l2", "l1", "relative"):
            raise ValueError(f"variant is l2, l1 or relative, not {variant!r}")
        self.weight, self.variant = weight, variant
        self.radius = nn.Parameter(torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor, labels: Tensor, logit: Tensor, weights: Tensor) -> Tensor:
        """Equation 2, or its variant."""
        norms = norm(features)
        counted = (weights > 0).to(norms.dtype)
        mean = (norms * counted).sum() / counted.sum().clamp(min=1)
        if self.training:
            self._start(mean.detach(), counted.any())
        gaps = norms - snapshot(self.radius)
        if self.variant == "l1":
            return self.weight * (F.smooth_l1_loss(gaps, torch.zeros_like(gaps), reduction="none") * weights).sum()
        loss = self.weight / 2 * (gaps.square() * weights).sum()
        return loss / mean.clamp(min=TINY) if self.variant == "relative" else loss

    @torch.no_grad()
    def _start(self, mean: Tensor, counted: Tensor) -> None:
        """The radius takes the first batch's mean norm, of all processes that have counted a sample; without any it waits for
        the next batch. Nothing waits for the device."""
        if _shared():
            sums = torch.stack((mean * counted, counted.to(mean.dtype)))
            dist.all_reduce(sums)
            mean, counted = sums[0] / sums[1].clamp(min=1), sums[1] > 0
        self.radius.copy_(torch.where(self.started | ~counted, self.radius, mean))
        self.started.logical_or_(counted)

    def extra_repr(self) -> str:
        """weight, variant."""
        return f"weight={self.weight}, variant={self.variant}"


def _shared() -> bool:
    """Whether there may be other processes, all of which take part in the mean."""
    return dist.is_available() and dist.is_initialized()


@HEADS.register("ring")
def ring(in_features: int, num_classes: int, weight: Annotated[float, NOT_NEGATIVE] = 0.01, variant: Variant = "l2") -> Head:
    """Softmax with ring loss (Zheng et al., CVPR 2018, equation 3).

    Args:
        in_features: D.
        num_classes: K.
        weight: lambda.
        variant: l2, l1 (smooth) or relative (l2 over the mean norm).
    """
    return Head(Linear(in_features, num_classes), None, CrossEntropy(), [RingLoss(weight, variant)])
