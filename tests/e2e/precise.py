"""LeNet in float64: rounding is far below what a wrong gradient or batch would do. Imported by runs through ``IMPORTS``."""

import torch
from torch import Tensor

from pycls.models.lenet import LeNet5
from pycls.registry import MODELS

torch.set_default_dtype(torch.float64)


@MODELS.register("precise")
class Precise(LeNet5):
    """LeNet-5 with float64 parameters and features."""

    def __init__(self, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__(in_channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """As the net's."""
        return super().forward(images.double())
