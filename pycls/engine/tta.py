"""Test-time augmentation: evaluation on several views of an image, its mirror image and crops."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TestTimeAugmentation:
    """The views of an image whose predictions are averaged.

    Attributes:
        count: 1 the image, 2 its mirror image as well, 10 the corners and the centre, and their mirror images (Krizhevsky et
            al., NIPS 2012, section 4.1).
        size: side of a crop in pixels; of the images where they are not cut.
    """

    count: int = 1
    size: int = 0

    def views(self, images: Tensor) -> list[Tensor]:
        """float ``[n, C, H, W]`` -> ``count`` of ``[n, C, size, size]``."""
        if self.count == 1:
            return [images]
        crops = [images] if self.count == 2 else self._crops(images)
        return [*crops, *(crop.flip(3) for crop in crops)]

    def _crops(self, images: Tensor) -> list[Tensor]:
        height, width, size = images.shape[2], images.shape[3], self.size
        corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
        places = [*corners, ((height - size) // 2, (width - size) // 2)]
        return [images[:, :, top : top + size, left : left + size] for top, left in places]

    def predict(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """Logits ``[n, K]`` and loss: of several views the logarithm of the mean probability, and the mean loss."""
        outputs = [model(view, labels) for view in self.views(images)]
        if len(outputs) == 1:
            return outputs[0].logits, outputs[0].loss
        log_p = torch.stack([F.log_softmax(output.logits.float(), dim=1) for output in outputs])
        return log_p.logsumexp(dim=0) - math.log(len(outputs)), torch.stack([output.loss for output in outputs]).mean()
