"""Losses beside the criterion: a batch's features and classes -> a scalar, and what moves outside the gradient."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from reference_similarities import gaussian_terms, norm
from torch import Tensor

Parameters = Mapping[str, Tensor]
Options = Mapping[str, Any]
Sample = tuple[Tensor, int, float]
"""A feature vector, its class, and the share of the loss it counts with (1 without mixup)."""
Auxiliary = Callable[[Sequence[Sample], Parameters, Options], Tensor]


def likelihood(samples: Sequence[Sample], p: Parameters, o: Options) -> Tensor:
    """lambda (d_y + log|Lambda_y| / 2), mean over the samples (L-GM eq. 9)."""
    total = 0.0
    for x, y, share in samples:
        distance, logdet = gaussian_terms(x, p, o)
        total = total + share * (distance[y] + logdet[y] / 2)
    return o["likelihood_weight"] * total / len(samples)


def centre(samples: Sequence[Sample], p: Parameters, o: Options) -> Tensor:
    """(lambda / 2) |x_i - c_y|^2 (centre loss eq. 2), here the mean over the samples, as the cross entropy's."""
    total = 0.0
    for x, y, share in samples:
        total = total + share * ((x - p["centers"][y]) ** 2).sum()
    return o["weight"] / 2 * total / len(samples)


def ring(samples: Sequence[Sample], p: Parameters, o: Options) -> Tensor:
    """(lambda / 2m) sum (|x_i| - R)^2 (ring loss eq. 2), or smooth L1 of |x_i| - R, or L2 over the mean norm."""
    total = 0.0
    for x, _, share in samples:
        gap = norm(x) - p["radius"]
        if o["variant"] == "l1":
            total = total + share * (gap**2 / 2 if abs(float(gap.detach())) < 1 else abs(gap) - 0.5)
        else:
            total = total + share * gap**2 / 2
    mean = o["weight"] * total / len(samples)
    if o["variant"] == "relative":
        return mean / (sum(norm(x) for x, _, _ in samples) / len(samples))
    return mean


def first_radius(samples: Sequence[Sample]) -> float:
    """R starts at the first batch's mean norm."""
    return sum(float(norm(x.detach())) for x, _, _ in samples) / len(samples)


def updated_centres(samples: Sequence[Sample], centres: Tensor, rate: float) -> Tensor:
    """c_j - alpha sum_{y=j} (c_j - x_i) / (1 + n_j) (centre loss eq. 4 and algorithm 1), [K, D]."""
    new = centres.clone()
    for j in range(len(centres)):
        own = [x.detach() for x, y, _ in samples if y == j]
        gap = sum((centres[j] - x for x in own), start=torch.zeros_like(centres[j]))
        new[j] = centres[j] - rate * gap / (1 + len(own))
    return new
