"""Long tails by the published rules: which images of a balanced set to keep.

The first class of the set is the largest, the last the smallest. Of a class those with the smallest hashes are kept, so that
a stronger imbalance keeps a part of what a weaker one does.
"""

import torch
from torch import Tensor

from pycls.data import rng
from pycls.errors import InputError

PROFILES = ("none", "exponential", "pareto")
ALPHA = 6.0
"""Power of ImageNet-LT's Pareto distribution (Liu et al., CVPR 2019)."""


def exponential_profile(largest: int, num_classes: int, imbalance: float) -> Tensor:
    """Images of each class, int64 ``[K]``: ``n_j = floor(n_max * imbalance^(-j / (K - 1)))``.

    Cui et al., "Class-balanced loss" (CVPR 2019); Cao et al., "LDAM-DRW" (NeurIPS 2019). From CIFAR's 50,000 training images
    imbalance 100 makes 12,406 images of 10 classes, and 10,847 of 100.

    Args:
        largest: n_max.
        num_classes: K, 2 or more.
        imbalance: n_max over the size of the smallest class, 1 or more.
    """
    ranks = torch.arange(num_classes, dtype=torch.float64)
    # the smallest class is n_max / imbalance exactly: a rounding error must not take an image from it
    return (largest * imbalance ** (-ranks / (num_classes - 1)) + 1e-6).long().clamp(min=1)


def pareto_profile(largest: int, smallest: int, num_classes: int, alpha: float = ALPHA) -> Tensor:
    """Images of each class, int64 ``[K]``, by ImageNet-LT's rule.

    The authors drew the class sizes from a Pareto distribution (Lomax: survival ``(1 + x)^-alpha``), scaled to 1,280 .. 5
    images. Here they are its quantiles at the median ranks ``(j + 0.7) / (K + 0.4)``: no draw, and 112,500 images in place of
    their 115,846 for the same 1,000 classes.

    Args:
        largest: images of the first class.
        smallest: below those of the last.
        num_classes: K, 2 or more.
        alpha: the power.
    """
    ranks = (torch.arange(num_classes, dtype=torch.float64) + 0.7) / (num_classes + 0.4)
    excess = ranks ** (-1 / alpha) - 1
    excess = (excess - excess[-1]) / (excess[0] - excess[-1])
    return (smallest + (largest - smallest) * excess).round().long()


def keep_profile(labels: Tensor, profile: Tensor, seed: int) -> Tensor:
    """Ids, ascending, of as many samples of each class as ``profile`` says, int64 ``[K]``; all of one that has fewer."""
    counts = torch.bincount(labels, minlength=len(profile))
    by_hash = rng.permutation(len(labels), seed, 0, rng.TAIL)
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[rank < profile.repeat_interleave(counts)].sort().values


def long_tail(
    labels: Tensor, num_classes: int, profile: str, imbalance: float, largest: int, smallest: int, seed: int
) -> Tensor:
    """Ids, ascending, of the long tail.

    Args:
        labels: int64 ``[N]``.
        num_classes: K.
        profile: exponential or pareto.
        imbalance: exponential: size of the largest class over that of the smallest.
        largest: pareto: images of the first class; 0 for as many as the largest class has.
        smallest: pareto: images of the last class.
        seed: of the choice of images.
    """
    if num_classes < 2:
        raise InputError("DATA.LONG_TAIL needs two classes or more")
    most = int(torch.bincount(labels, minlength=num_classes).max())
    if profile == "exponential":
        if imbalance < 1:
            raise InputError(f"DATA.LONG_TAIL.IMBALANCE is the largest class over the smallest, 1 or more, not {imbalance}")
        return keep_profile(labels, exponential_profile(most, num_classes, imbalance), seed)
    if largest > most:
        raise InputError(f"DATA.LONG_TAIL.LARGEST must be at most {most}, the images of the largest class, not {largest}")
    first = largest or most
    if not 1 <= smallest < first:
        raise InputError(f"DATA.LONG_TAIL.SMALLEST must be 1..{first - 1}, below the largest class, not {smallest}")
    return keep_profile(labels, pareto_profile(first, smallest, num_classes), seed)
