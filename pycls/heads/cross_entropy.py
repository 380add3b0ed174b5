"""Cross entropy, with label smoothing."""

import torch.nn.functional as F
from torch import Tensor

from pycls.heads.parts import SoftmaxCriterion
from pycls.registry import CRITERIA


@CRITERIA.register("cross_entropy")
class CrossEntropy(SoftmaxCriterion):
    """``-sum_j q_j log p_j`` with ``q = (1 - e) [j = y] + e / K`` (Szegedy et al., CVPR 2016, section 7).

    Args:
        label_smoothing: e, the share of the target spread over all classes, in [0, 1].

    Raises:
        ValueError: if label_smoothing is outside [0, 1].
    """

    name = "cross_entropy"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing is a share in [0, 1], not {label_smoothing}")
        self.label_smoothing = label_smoothing

    @property
    def uses_total(self) -> bool:  # type: ignore[override]
        """Smoothing needs the sum of the logits."""
        return self.label_smoothing > 0

    def forward(self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, classes: int) -> Tensor:
        """``softplus(others - target)`` is ``-log p_y``; smoothing adds ``e (z_y - mean z)``."""
        losses = F.softplus(others - target, threshold=1e9)
        if total is not None:
            losses = losses + self.label_smoothing * (target - total / classes)
        return losses

    def extra_repr(self) -> str:
        """label_smoothing."""
        return f"label_smoothing={self.label_smoothing}"
