"""What happens to a batch of pixels on the device: bytes to normalised floats, and resizing."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalise:
    """Bytes to floats: ``(x / 255 - mean) / std`` as one multiplication and one addition, in place.

    A batch comes in the memory order it will have: ``[n, C, H, W]``, or ``[n, H, W, C]`` for channels-last.

    Args:
        mean: one a channel, of values in 0..1.
        std: one a channel.
        channels_last: which of the two orders.
        width: of the images, in pixels.
        device: where the batches are.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channels_last: bool, width: int, device: torch.device
    ) -> None:
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        scale, shift = (1 / (255 * stds)).float().to(device), (-means / stds).float().to(device)
        self._channels_last = channels_last
        # Whole rows of W * C values at a time: broadcasting over an innermost dimension of 3 is ten times slower.
        self._scale = scale.repeat(width) if channels_last else scale[:, None, None]
        self._shift = shift.repeat(width) if channels_last else shift[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels in the order above -> float32 ``[n, C, H, W]``, channels-last in memory if so asked."""
        images = pixels.to(torch.float32)
        if not self._channels_last:
            return images.mul_(self._scale).add_(self._shift)
        images.view(*images.shape[:2], -1).mul_(self._scale).add_(self._shift)
        return images.permute(0, 3, 1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing: float ``[n, C, H, W]`` -> ``[n, C, size, size]``, memory order kept."""
    if images.shape[-1] == images.shape[-2] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def centre(images: Tensor, size: int) -> Tensor:
    """The middle ``[n, C, size, size]`` of a batch, as a view."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
