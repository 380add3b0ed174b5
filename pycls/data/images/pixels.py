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
        device: where the batches are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool, device: torch.device) -> None:
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        scale, shift = (1 / (255 * stds)).float().to(device), (-means / stds).float().to(device)
        self._channels_last = channels_last
        self._scale, self._shift = scale, shift
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # by width

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels in the order above -> float32 ``[n, C, H, W]``, channels-last in memory if so asked."""
        images = pixels.to(torch.float32)
        if not self._channels_last:
            return images.mul_(self._scale[:, None, None]).add_(self._shift[:, None, None])
        scale, shift = self._row(images.shape[2])
        images.view(*images.shape[:2], -1).mul_(scale).add_(shift)
        return images.permute(0, 3, 1, 2)

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """Whole rows of W * C values at a time: broadcasting over an innermost dimension of 3 is ten times slower."""
        if width not in self._rows:
            self._rows[width] = self._scale.repeat(width), self._shift.repeat(width)
        return self._rows[width]


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing: float ``[n, C, H, W]`` -> ``[n, C, size, size]``, memory order kept."""
    if images.shape[-1] == images.shape[-2] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def centre(images: Tensor, size: int) -> Tensor:
    """The middle ``[n, C, size, size]`` of a batch, as a view."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
