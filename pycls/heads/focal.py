"""Focal loss (Lin et al., ICCV 2017), in its softmax form."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.heads.parts import SoftmaxCriterion
from pycls.ranges import NOT_NEGATIVE
from pycls.registry import CRITERIA


@CRITERIA.register("focal")
class Focal(SoftmaxCriterion):
    """``-(1 - p_y)^gamma log p_y`` (Lin et al., ICCV 2017, equation 4), p from the softmax.

    Args:
        gamma: >= 0; 0 is the cross entropy.

    Raises:
        ValueError: if gamma is negative.
    """

    name = "focal"

    def __init__(self, gamma: Annotated[float, NOT_NEGATIVE] = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def value_and_grads(
        self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """1 - p_y is sigmoid(others - target): its logarithm keeps any power finite."""
        gap = others - target
        losses = F.softplus(gap, threshold=60)  # -log p_y
        power = (self.gamma * F.logsigmoid(gap)).exp()  # (1 - p_y)^gamma
        # d(1 - p_y) / dgap = p_y (1 - p_y)
        slope = power * (self.gamma * torch.sigmoid(-gap) * losses + gap.sigmoid())
        return power * losses, -slope, slope, None

    def extra_repr(self) -> str:
        """gamma."""
        return f"gamma={self.gamma}"
