"""Labels as a head's losses take them: sets of targets, and the share of each sample in a mean."""

import torch
from torch import Tensor

Labels = Tensor | tuple[Tensor, Tensor, Tensor | float]
"""int64 [N], or a mixture (labels_a [N], labels_b [N], lam: number or [N]) meaning lam a + (1 - lam) b."""


def targets_of(labels: Labels, x: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """Labels or a mixture -> targets int64 [N, L] and shares [N, L] in x's type, 0 where there is no target.

    No shares at all if they are known to be 1. A GPU would have to be waited for to know; there the labels were checked
    when the data set was built.
    """
    if isinstance(labels, Tensor):
        targets, shares = labels.unsqueeze(1), None
    else:
        first, second, lam = labels
        lam = (lam.to(x) if isinstance(lam, Tensor) else x.new_full((), lam)).expand(len(x))  # a GPU is not waited for
        targets, shares = torch.stack((first, second), dim=1), torch.stack((lam, 1 - lam), dim=1)
    samples = x.size(0)
    if targets.size(0) != samples:
        raise ValueError(f"{samples} features but {targets.size(0)} labels")
    if samples and targets.is_cpu and not torch.compiler.is_compiling():
        known = targets.flatten().tolist()  # quicker than a tensor's operations
        least, largest = min(known), max(known)
        if largest >= classes:
            raise ValueError(f"label {largest} in a head of {classes} classes")
        if shares is None and least >= 0:
            return targets, None
    present = (targets >= 0).to(x.dtype)
    return targets, present if shares is None else shares * present


class Mean:
    """The mean over the samples that have a target, of each label set: of a mixture lam times the one's plus 1 - lam times
    the other's; of a criterion's losses weighted by the classes' weights [K]."""

    def __init__(self, targets: Tensor, clamped: Tensor, shares: Tensor | None, weights: Tensor | None) -> None:
        self.targets, self.clamped, self.shares, self.weights = targets, clamped, shares, weights

    def of(self, losses: Tensor, k: int) -> Tensor:
        """Of the criterion's losses [N]."""
        if self.weights is None:
            return torch.dot(losses, self.even(k, losses))
        weights = self.weights[column(self.clamped, k)]
        if self.shares is not None:
            weights = weights * (column(self.targets, k) >= 0)
        portions = weights / weights.sum().clamp_(min=torch.finfo(weights.dtype).tiny)
        return torch.dot(losses, portions if self.shares is None else portions * column(self.shares, k))

    def even(self, k: int, x: Tensor) -> Tensor:
        """[N], the share of each sample in a mean without weights, in x's type."""
        if self.shares is None:
            samples = x.size(0)
            return x.new_full((samples,), 1 / max(samples, 1))
        return column(self.shares, k) / (column(self.targets, k) >= 0).sum().clamp_(min=1)


def column(values: Tensor, k: int) -> Tensor:
    """Column k; of the only one a view whose gradient costs nothing."""
    return values.squeeze(1) if values.shape[1] == 1 else values[:, k]
