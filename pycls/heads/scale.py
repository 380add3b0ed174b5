"""The factor s of a cosine: fixed, learned, or learned through a softplus."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Learning = Literal["fixed", "learned", "softplus"]


def adacos_scale(num_classes: int) -> float:
    """AdaCos's fixed scale ``sqrt(2) ln(K - 1)`` (Zhang et al., CVPR 2019, equation 12), at least 2."""
    return max(2.0, math.sqrt(2) * math.log(max(num_classes - 1, 1)))


class Scale(nn.Module):
    """s: a constant, a parameter, or ``softplus(s_) + 1`` of a parameter ``s_`` that starts at 0 (t-vMF's).

    Args:
        start: s, or where it starts; 0 for AdaCos's ``sqrt(2) ln(K - 1)``. Ignored by ``"softplus"``.
        learning: which of the three.
        num_classes: K.

    Raises:
        ValueError: if start is negative.
    """

    def __init__(self, start: float, learning: Learning, num_classes: int) -> None:
        super().__init__()
        self.learning = learning
        self.start = float(start) or adacos_scale(num_classes)
        if learning != "fixed":
            self.raw = nn.Parameter(torch.tensor(0.0 if learning == "softplus" else self.start))

    def forward(self) -> Tensor | float:
        """s: a number, or a 0-dim tensor if it is learned."""
        if self.learning == "fixed":
            return self.start
        return F.softplus(self.raw) + 1 if self.learning == "softplus" else self.raw

    def extra_repr(self) -> str:
        """What it is."""
        return f"{self.start:g}, fixed" if self.learning == "fixed" else self.learning
