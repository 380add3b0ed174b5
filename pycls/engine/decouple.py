"""Classifiers for a frozen backbone: Kang et al., "Decoupling representation and classifier" (ICLR 2020), section 4.1."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pycls.runtime.distributed import all_reduce_sum

TAUS = [k / 10 for k in range(21)]
"""What :func:`choose_tau` tries."""


def is_linear(head: nn.Module) -> bool:
    """Whether a head's logits are w . x + b."""
    return getattr(getattr(head, "similarity", None), "name", "") == "linear"


@torch.no_grad()
def keep_classifier(similarity: Any, weight: Tensor | None, bias: Tensor | None) -> None:
    """Gives a similarity this weight [K, D] and bias [K] (None: 0), and freezes both."""
    assert weight is not None
    for own, given in ((similarity.weight, weight), (similarity.bias, torch.zeros(len(weight)) if bias is None else bias)):
        own.copy_(given)
        own.requires_grad_(False)


@torch.no_grad()
def set_weight(similarity: Any, weight: Tensor) -> None:
    """Gives a similarity these prototypes [K, D]."""
    similarity.weight.copy_(weight)


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """Rows w / |w|^tau; a row of zeros stays."""
    return weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau


@torch.no_grad()
def choose_tau(model: Any, weight: Tensor, batches: Iterable[Any], present: Tensor) -> float:
    """The tau of :data:`TAUS` with the lowest error, averaged over the classes; of equal ones the smallest.

    Args:
        model: in evaluation mode from here on; ``features`` gives [N, D].
        weight: of a linear classifier [K, D], on the model's device.
        batches: this process's (images, labels, ids).
        present: which classes have training images, and so may be predicted: bool [K], on that device.
    """
    model.eval()
    classes = len(present)
    right = torch.zeros(len(TAUS), classes, dtype=torch.int64, device=weight.device)
    total = torch.zeros(classes, dtype=torch.int64, device=weight.device)
    normalised = [tau_normalised(weight, tau) for tau in TAUS]
    for images, labels, _ in batches:
        features = model.features(images)
        total += torch.bincount(labels, minlength=classes)
        for k, rows in enumerate(normalised):
            right[k] += torch.bincount(labels[_best(features @ rows.t(), present) == labels], minlength=classes)
    right, total = all_reduce_sum(right).cpu().double(), all_reduce_sum(total).cpu()
    return TAUS[int((right[:, total > 0] / total[total > 0]).mean(dim=1).argmax())]


def _best(logits: Tensor, present: Tensor) -> Tensor:
    """The highest [N] of the classes that are present, bool [K], of logits [N, K]."""
    return logits.masked_fill(~present, -torch.inf).argmax(dim=1)


@torch.no_grad()
def class_means(model: Any, batches: Iterable[Any], classes: int, device: torch.device) -> Tensor:
    """The mean feature of each class, float32 [K, D], over the batches (images, labels, ids) of all processes.

    With a cosine they are the nearest-class-mean classifier. A class without images has zeros, for want of a mean.
    """
    model.eval()
    real = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(classes, model.backbone.feature_dim, dtype=real, device=device)
    counts = torch.zeros(classes, dtype=torch.int64, device=device)
    for images, labels, _ in batches:
        sums.index_add_(0, labels, model.features(images).to(real))
        counts += torch.bincount(labels, minlength=classes)
    return (all_reduce_sum(sums) / all_reduce_sum(counts).clamp(min=1)[:, None]).float()
