"""Cross entropy: label smoothing, class weights, and class-balanced weights from an epoch on (DRW)."""

import copy
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

    def class_priors(self) -> list[str]:
        """The weights, if there are any."""
        return ["weights"] if self.weights is not None else []

    @property
    def uses_total(self) -> bool:  # type: ignore[override]
        """Smoothing needs the sum of the logits."""
        return self.label_smoothing > 0

    def class_weights(self) -> Tensor | None:
        """[K], or None."""
        return self.weights

    def with_label_smoothing(self, label_smoothing: float) -> "CrossEntropy":
        """A copy with this label smoothing."""
        criterion = copy.deepcopy(self)
        criterion.label_smoothing = label_smoothing
        return criterion

    def smoothed_over(self, num_classes: int) -> int | Tensor:
        """How many of the classes smoothing's share is spread over, where they have weights."""
        return num_classes

    def value_and_grads(
        self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``log(1 + exp(others - target))`` is ``-log p_y``; smoothing takes its share of all classes' terms."""
        gap = others - target
        losses = F.softplus(gap, threshold=60)  # the sum is exact to the last place there
        wrong = gap.sigmoid_()  # 1 - p_y
        e = self.label_smoothing
        if total is None or not e:
            return losses, -wrong, wrong, None
        weights = self.class_weights()
        if weights is None:
            smoothed = losses + e * (target - total / num_classes)
            return smoothed, e - wrong, wrong, torch.full_like(total, -e / num_classes)
        # the head multiplies by the label's weight; smoothing's share has every class's own
        weights = weights.to(target.dtype)
        own = weights[labels]  # which may be 0: such a sample has no share in the mean
        share = e / (self.smoothed_over(num_classes) * torch.where(own > 0, own, 1.0))
        of_log_sum = share * weights.sum()
        smoothed = (1 - e) * losses + of_log_sum * (losses + target) - share * total
        return smoothed, of_log_sum - (1 - e + of_log_sum) * wrong, (1 - e + of_log_sum) * wrong, -share

    def extra_repr(self) -> str:
        """label_smoothing, and whether there are weights."""
        return f"label_smoothing={self.label_smoothing}" + (", class weights" if self.weights is not None else "")


@CRITERIA.register("class_balanced")
class ClassBalanced(CrossEntropy):
    """Cross entropy with weights by the effective number of samples, ``(1 - beta) / (1 - beta^n_j)``, of mean 1.

    A class without training samples has weight 0, does not count in the mean, and gets nothing of the smoothing.

    Cui et al., CVPR 2019, equation 4. From a later epoch on it is LDAM's deferred re-weighting, DRW (Cao et al., NeurIPS
    2019, algorithm 1): equal weights until then.

    Args:
        class_counts: training samples of each class [K]; 0 for a class without any.
        beta: in [0, 1); 0 for equal weights.
        from_epoch: epoch (from 0 on) at which the weights come into force.
        label_smoothing: e, the share of the target spread over all classes, in [0, 1].

    Raises:
        ValueError: if beta is outside [0, 1), or a count negative.
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
        counts = as_counts(class_counts)
        present = counts > 0
        weights = (1 - beta) / -torch.expm1(counts.clamp(min=1) * math.log(beta)) if beta else torch.ones_like(counts)
        self.weights = torch.where(present, weights / weights[present].mean(), 0.0)
        self.register_buffer("in_force", torch.tensor(from_epoch <= 0))

    def check(self, num_classes: int) -> None:
        """One count a class."""
        assert self.weights is not None
        check_counts(self.weights, num_classes)

    def set_epoch(self, epoch: int) -> None:
        """Puts the weights into force when their epoch has come."""
        self.in_force.fill_(epoch >= self.from_epoch)

    def class_weights(self) -> Tensor:
        """[K]; ones until they are in force, but for classes without training samples."""
        assert self.weights is not None
        return torch.where(self.in_force, self.weights, (self.weights > 0).to(self.weights.dtype))

    def with_label_smoothing(self, label_smoothing: float) -> "CrossEntropy":
        """A copy with this label smoothing."""
        criterion = copy.deepcopy(self)
        criterion.label_smoothing = label_smoothing
        return criterion

    def smoothed_over(self, classes: int) -> Tensor:
        """Those that have training samples."""
        assert self.weights is not None
        return (self.weights > 0).sum()


def as_counts(class_counts: Tensor | list[int]) -> Tensor:
    """Counts of training samples, float64 [K]: 0 for a class without any, at least 1 for the others.

    Raises:
        TypeError: they are not real numbers.
        ValueError: they are not [K], one is negative or not finite, or all are 0.
    """
    counts = torch.as_tensor(class_counts)
    if counts.dtype is torch.bool or counts.is_complex():
        raise TypeError(f"class_counts are one number a class, not a tensor of {str(counts.dtype).removeprefix('torch.')}")
    if counts.ndim != 1:
        raise ValueError(f"class_counts are one number a class, [K], not {list(counts.shape)}")
    counts = counts.double()
    wrong = counts[~((counts >= 0) & counts.isfinite())].tolist()
    if wrong:
        raise ValueError(f"class_counts are numbers of training images, none of them negative, and one is {wrong[0]:g}")
    if not counts.any():
        raise ValueError("class_counts are all 0: no class has training images")
    return torch.where(counts > 0, counts.clamp(min=1), 0.0)


def check_counts(of_classes: Tensor, num_classes: int) -> None:
    """Raises ``ValueError`` unless what was made of the counts is [num_classes]."""
    if len(of_classes) != num_classes:
        raise ValueError(f"{len(of_classes)} class_counts for {num_classes} classes")
