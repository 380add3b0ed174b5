"""Labels as a head's losses take them: what is refused, sets of targets, and the share of each sample in a mean."""

from numbers import Real

import torch
from torch import Tensor

Labels = Tensor | tuple[Tensor, Tensor, Tensor | float]
"""Integers [N], or a mixture (labels_a [N], labels_b [N], lam: number or [N]) meaning lam a + (1 - lam) b."""

INTEGERS = (
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64
)  # fmt: skip


def check_features(features: Tensor, weight: Tensor) -> None:
    """Refuses features that a head with these prototypes [K * num_centers, D] cannot take.

    Raises:
        TypeError: they are no tensor of floating-point numbers.
        ValueError: they are not [N, D], or on another device than the prototypes.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(f"a head takes features of floating-point numbers, not {_kind(features)}")
    if features.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(f"a head of {weight.shape[1]} features takes them as [N, {weight.shape[1]}], not {_shape(features)}")
    if features.device != weight.device:
        raise ValueError(f"the features are on {features.device}, but the head on {weight.device}")


def checked_labels(labels: Labels, features: Tensor) -> Labels:
    """Labels or a mixture as int64, of features [N, D]. Their values are looked at by :func:`targets_of`.

    Raises:
        TypeError: labels are no tensor of integers (bool is none), or lam no number.
        ValueError: labels are not [N] or on another device than the features; lam is not a number or [N], or not in [0, 1].
    """
    if isinstance(labels, Tensor):
        return _checked_set(labels, features, "labels")
    if not isinstance(labels, tuple | list) or len(labels) != 3:
        raise TypeError(f"labels are a tensor of integers [N] or a mixture (labels_a, labels_b, lam), not {_kind(labels)}")
    first, second, lam = labels
    _check_share(lam, features.shape[0])
    return _checked_set(first, features, "labels_a"), _checked_set(second, features, "labels_b"), lam


def _checked_set(labels: Tensor, features: Tensor, name: str) -> Tensor:
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        raise TypeError(f"{name} are the samples' class numbers, a tensor of integers [N], not {_kind(labels)}")
    if labels.ndim != 1:
        raise ValueError(f"{name} are one class number a sample, [N], not {_shape(labels)}")
    if labels.shape[0] != features.shape[0]:
        raise ValueError(f"{features.shape[0]} features but {labels.shape[0]} {name}")
    if labels.device != features.device:
        raise ValueError(f"{name} are on {labels.device}, but the features on {features.device}")
    if labels.dtype is torch.int64:
        return labels
    numbers = labels.long()
    if labels.dtype is torch.uint64:  # what int64 has no room for is no class, nor may it become one
        numbers = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers)
    return numbers


def _check_share(lam: Tensor | float, samples: int) -> None:
    if not isinstance(lam, Tensor):
        if isinstance(lam, bool) or not isinstance(lam, Real):
            raise TypeError(f"a mixture's lam is a number or a tensor of N numbers, not {_kind(lam)}")
        known = 0 <= lam <= 1
    else:
        if lam.dtype is torch.bool or lam.is_complex():
            raise TypeError(f"a mixture's lam is a number or a tensor of N numbers, not {_kind(lam)}")
        if lam.ndim > 1 or (lam.ndim == 1 and lam.shape[0] != samples):
            raise ValueError(f"a mixture's lam is a number or one of each sample, [{samples}], not {_shape(lam)}")
        unknown = not lam.is_cpu or torch.compiler.is_compiling()  # a GPU is not waited for
        known = unknown or bool(((lam >= 0) & (lam <= 1)).all())
    if not known:
        raise ValueError(f"a mixture's lam is in [0, 1], not {lam if not isinstance(lam, Tensor) else lam.tolist()}")


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}".replace("torch.", "") if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _shape(value: Tensor) -> str:
    return str([int(size) for size in value.shape])


def no_class(label: int, classes: int) -> ValueError:
    """The error of a label that is neither a class nor -1."""
    return ValueError(f"label {label} in a head of {classes} classes: labels are 0..{classes - 1}, or -1 for no target")


def targets_of(labels: Labels, x: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """Labels or a mixture, checked -> targets int64 [N, L] and shares [N, L] in x's type, 0 where there is no target.

    No shares at all if they are known to be 1. A GPU would have to be waited for to know; there the labels were checked
    when the data set was built.

    Raises:
        ValueError: a label on the CPU is neither a class nor -1.
    """
    if isinstance(labels, Tensor):
        targets, shares = labels.unsqueeze(1), None
    else:
        first, second, lam = labels
        lam = (lam.to(x) if isinstance(lam, Tensor) else x.new_full((), lam)).expand(len(x))  # a GPU is not waited for
        targets, shares = torch.stack((first, second), dim=1), torch.stack((lam, 1 - lam), dim=1)
    if x.size(0) and targets.is_cpu and not torch.compiler.is_compiling():
        known = targets.flatten().tolist()  # quicker than a tensor's operations
        least, largest = min(known), max(known)
        if largest >= classes or least < -1:
            raise no_class(largest if largest >= classes else least, classes)
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
