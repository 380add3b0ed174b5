"""A custom backbone: LeNet-5 with a linear layer to two features, so that every image is a point in the plane."""

from torch import Tensor, nn

from pycls.models.lenet import LeNet5
from pycls.registry import MODELS


@MODELS.register("plane")
class Plane(nn.Module):
    """LeNet-5, and a linear layer on its 500 features. No activation follows: the whole plane is in use.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels.
        feature_dim: number of features D; 2 for pictures.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, feature_dim: int = 2) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.body = LeNet5(in_channels, image_size)
        self.fc = nn.Linear(self.body.feature_dim, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, feature_dim]."""
        return self.fc(self.body(images))
