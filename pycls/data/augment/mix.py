"""Mixup and CutMix: a batch and its own permutation, mixed on the device.

Mixup: Zhang, Cisse, Dauphin and Lopez-Paz, ICLR 2018. CutMix: Yun et al., ICCV 2019. The head gets both labels and
their weight and adds two losses, so that margins stay defined and labels stay integers.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pycls.data import rng


def mix(
    images: Tensor, labels: Tensor, seed: int, step: int, mixup_alpha: float, cutmix_alpha: float, rank: int = 0
) -> tuple[Tensor, tuple[Tensor, Tensor, float]]:
    """Mixes each image with a partner from the same batch: a pure function of (seed, step, rank).

    Which of the two it is, where both are asked for (one or the other with probability 1/2), the ratio and the box
    depend on (seed, step) alone, and so are the same for all processes; the partners depend on the rank as well.

    Args:
        images: float ``[n, C, H, W]``; not changed.
        labels: int64 ``[n]``.
        seed: of the run.
        step: optimiser steps before this one, over all epochs.
        mixup_alpha: the ratio is from Beta(a, a); 0 for no mixup.
        cutmix_alpha: the area kept is from Beta(a, a); 0 for no CutMix.
        rank: of this process.

    Returns:
        the mixed images, and ``(labels_a, labels_b, lam)``: the weight ``lam`` in 0..1 is that of ``labels_a``, the
        batch's own. With both alphas 0 the images are returned as they are and ``lam`` is 1.
    """
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise ValueError(f"MIXUP_ALPHA and CUTMIX_ALPHA must be 0 or more, not {mixup_alpha} and {cutmix_alpha}")
    if mixup_alpha == cutmix_alpha == 0:
        return images, (labels, labels, 1.0)
    cut = mixup_alpha == 0 or (cutmix_alpha > 0 and rng.hash_word(seed, step, 0, rng.MIX) >> 63 == 1)
    lam = _beta(cutmix_alpha if cut else mixup_alpha, seed, step)
    partners = rng.permutation(len(labels), rng.key(seed, rank, rng.PAIRS), step, rng.PAIRS)
    partners = partners.to(images.device, non_blocking=True)
    others = images.index_select(0, partners)
    if cut:
        top, bottom, left, right = _box(images.shape[2], images.shape[3], lam, seed, step)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        mixed = torch.lerp(others, images, lam)
    return mixed, (labels, labels.index_select(0, partners.to(labels.device)), lam)


def _beta(alpha: float, seed: int, step: int) -> float:
    """A number from Beta(alpha, alpha), by NumPy's Philox started at the hash of (seed, step)."""
    return float(np.random.Generator(np.random.Philox(key=rng.hash_word(seed, step, 1, rng.MIX))).beta(alpha, alpha))


def _box(height: int, width: int, lam: float, seed: int, step: int) -> tuple[int, int, int, int]:
    """CutMix's box ``(top, bottom, left, right)``: a share 1 - lam of the area, uniform centre, cut at the borders."""
    side = math.sqrt(1 - lam)
    bounds: list[int] = []
    for part, length in enumerate((height, width)):
        centre, half = int(rng.uniform_one(seed, step, part, rng.BOX) * length), int(length * side) // 2
        bounds += [max(centre - half, 0), min(centre + half, length)]
    return bounds[0], bounds[1], bounds[2], bounds[3]
