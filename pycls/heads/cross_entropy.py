"""Cross entropy: label smoothing, class weights, and class-balanced weights from an epoch on (DRW)."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.heads.parts import SoftmaxCriterion
from pycls.ranges import NOT_NEGATIVE, PART
from pycls.registry import CRITERIA


@CRITERIA.register("cross_entropy")
class CrossEntropy(SoftmaxCriterion):
    """``-sum_j q_j log p_j`` with ``q = (1 - e) [j = y] + e / K`` (Szegedy et al., CVPR 2016, section 7).

    Args:
        label_smoothing: e, the share of the target spread over all classes, in [0, 1].
        class_weights: a weight a class, as torch's: it multiplies the class's terms, and the mean is over the weights of
            the samples' labels. Empty for equal ones.

    Raises:
        ValueError: if label_smoothing is outside [0, 1] or a weight is negative.
    """

    name = "cross_entropy"
    weights: Tensor | None

    def __init__(
        self,
        label_smoothing: Annotated[float, PART] = 0.0,
        class_weights: Annotated[list[float] | None, NOT_NEGATIVE] = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", torch.tensor(class_weights, dtype=torch.float64) if class_weights else None)

    def check(self, num_classes: int) -> None:
        """One weight a class."""
        if self.weights is not None and len(self.weights) != num_classes:
            raise ValueError(f"{len(self.weights)} class_weights for {num_classes} classes")

    @property
    def uses_total(self) -> bool:  # type: ignore[override]
        """Smoothing needs the sum of the logits."""
        return self.label_smoothing > 0

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Without smoothing."""
        return not self.label_smoothing

    def class_weights(self) -> Tensor | None:
        """[K], or None."""
        return self.weights

    def forward(self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, classes: int) -> Tensor:
        """``log(1 + exp(others - target))`` is ``-log p_y``; smoothing takes its share of all classes' terms."""
        losses = F.softplus(others - target, threshold=60)  # the sum is exact to the last place there
        if total is None:
            return losses
        weights = None if self.weights is None else self.class_weights().to(target.dtype)  # type: ignore[union-attr]
        log_sum = losses + target
        if weights is None:
            return losses + self.label_smoothing * (target - total / classes)
        # the head multiplies by the label's weight; smoothing's share has every class's own
        spread = (weights.sum() * log_sum - total) / (classes * weights[labels])
        return (1 - self.label_smoothing) * losses + self.label_smoothing * spread

    def extra_repr(self) -> str:
        """label_smoothing, and whether there are weights."""
        return f"label_smoothing={self.label_smoothing}" + (", class weights" if self.weights is not None else "")


@CRITERIA.register("class_balanced")
class ClassBalanced(CrossEntropy):
    """Cross entropy with weights by the effective number of samples, ``(1 - beta) / (1 - beta^n_j)``, of mean 1.

    Cui et al., CVPR 2019, equation 4. From a later epoch on it is LDAM's deferred re-weighting, DRW (Cao et al., NeurIPS
    2019, algorithm 1): equal weights until then.

    Args:
        class_counts: training samples of each class [K].
        beta: in [0, 1); 0 for equal weights.
        from_epoch: epoch (from 0 on) at which the weights come into force.
        label_smoothing: e, the share of the target spread over all classes, in [0, 1].

    Raises:
        ValueError: if beta is outside [0, 1).
    """

    name = "class_balanced"
    in_force: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        beta: Annotated[float, PART] = 0.9999,
        from_epoch: Annotated[int, NOT_NEGATIVE] = 0,
        label_smoothing: Annotated[float, PART] = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        self.from_epoch = from_epoch
        counts = as_counts(class_counts).double()
        weights = (1 - beta) / -torch.expm1(counts * math.log(beta)) if beta else torch.ones_like(counts)
        self.weights = weights / weights.mean()
        self.register_buffer("in_force", torch.tensor(from_epoch <= 0))

    def set_epoch(self, epoch: int) -> None:
        """Puts the weights into force when their epoch has come."""
        self.in_force.fill_(epoch >= self.from_epoch)

    def class_weights(self) -> Tensor:
        """[K]; ones until they are in force."""
        assert self.weights is not None
        return torch.where(self.in_force, self.weights, 1.0)


def as_counts(class_counts: Tensor | list[int]) -> Tensor:
    """Counts of training samples, int64 or float [K], at least 1: a class without any sample counts as one of one."""
    counts = torch.as_tensor(class_counts)
    if counts.ndim != 1 or bool((counts < 0).any()):
        raise ValueError("class_counts are one number a class, none of them negative")
    return counts.clamp(min=1)
