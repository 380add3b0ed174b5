"""What becomes of training images after they are cut and flipped: on bytes, and on normalised batches.

Everything is a pure function of (seed, epoch, draw), whichever process does it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycls.data.augment.policies import ColorJitter, Policy, Samples

_LIGHT, _ERASE = 910, 920  # the first of the streams of this file
LIGHT_VALUES = (0.2175, 0.0188, 0.0045)
LIGHT_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Principal components of ImageNet's RGB values in 0..1: square roots of the eigenvalues, and a row of the vectors a colour."""
ERASE_AREA = (0.02, 1 / 3)
ERASE_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
ERASE_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done beside cutting and flipping; the defaults do nothing.

    Attributes:
        policy: operations on the pixels, or None.
        color_jitter: of brightness, contrast and saturation, from 0 on.
        pca_std: of the lighting along the principal components of colour (Krizhevsky et al., NIPS 2012, section 4.1);
            of images of three channels.
        erase_prob: that a box of the image becomes the mean colour (Zhong et al., AAAI 2020).
    """

    policy: Policy | None = None
    color_jitter: float = 0.0
    pca_std: float = 0.0
    erase_prob: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.erase_prob <= 1:
            raise ValueError(f"ERASE_PROB is a probability, not {self.erase_prob}")
        if self.color_jitter < 0 or self.pca_std < 0:
            raise ValueError(f"COLOR_JITTER and PCA_STD must be 0 or more, not {self.color_jitter} and {self.pca_std}")

    @property
    def of_bytes(self) -> bool:
        """Whether :meth:`on_bytes` does anything."""
        return self.policy is not None or self.color_jitter > 0

    def on_bytes(self, pixels: Tensor, samples: Samples) -> Tensor:
        """Policy and jitter: uint8 ``[n, C, H, W]`` in any memory order -> the same."""
        if self.policy is not None:
            pixels = self.policy(pixels, samples)
        if self.color_jitter:
            pixels = ColorJitter(self.color_jitter)(pixels, samples)
        return pixels

    def on_floats(self, images: Tensor, samples: Samples, std: Sequence[float]) -> Tensor:
        """Lighting and erasing, in place: float32 ``[n, C, H, W]``, normalised by ``std``, one a channel."""
        if self.pca_std and images.shape[1] == 3:
            shift = lighting(samples, self.pca_std) / torch.tensor(std, dtype=torch.float64)
            images.add_(shift.float().to(images.device, non_blocking=True)[:, :, None, None])
        if self.erase_prob:
            erase(images, samples, self.erase_prob)
        return images


def lighting(samples: Samples, std: float) -> Tensor:
    """What is added to each colour, of values in 0..1: float64 ``[n, 3]``."""
    alphas = torch.stack([samples.normal(_LIGHT + 2 * k) for k in range(3)], dim=1) * std
    return (alphas * torch.tensor(LIGHT_VALUES, dtype=torch.float64)) @ torch.tensor(LIGHT_VECTORS, dtype=torch.float64).T


def erase(images: Tensor, samples: Samples, prob: float) -> None:
    """Sets a box of each chosen image to 0: 2 to 33 % of the area, sides in a ratio of 0.3 to 3.3, in place."""
    height, width = images.shape[2:]
    boxes = torch.zeros(len(images), 4, dtype=torch.int64)  # top, bottom, left, right
    open_ = samples.uniform(_ERASE) < prob
    for attempt in range(ERASE_TRIES):
        u = [samples.uniform(_ERASE + 1 + 4 * attempt + k) for k in range(4)]
        area = height * width * (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * u[0])
        ratio = torch.exp(ERASE_LOG_RATIO[0] + (ERASE_LOG_RATIO[1] - ERASE_LOG_RATIO[0]) * u[1])
        h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = open_ & (h < height) & (w < width) & (h > 0) & (w > 0)
        top, left = (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor()
        boxes[fits] = torch.stack((top, top + h, left, left + w), dim=1).long()[fits]
        open_ &= ~fits
    top, bottom, left, right = boxes.to(images.device, non_blocking=True)[:, :, None].unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
    images.masked_fill_(inside, 0)
