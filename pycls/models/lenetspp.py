"""LeNets++: the small net whose 2-D features the papers plot (Wen et al., ECCV 2016, table 1)."""

from typing import Annotated

from torch import Tensor, nn

from pycls.models.layers.blocks import check_images, expect_images, prelu_convs
from pycls.ranges import COUNT
from pycls.registry import MODELS


@MODELS.register("lenetspp")
class LeNetsPlusPlus(nn.Module):
    """Three pairs of 5 x 5 convolutions (32, 64, 128 channels) with PReLU, 2 x 2 max pooling after each, and a
    fully connected layer with PReLU.

    The net of the MNIST demonstrations of centre loss, L-GM and CosFace. With two features every sample is a point in
    the plane, and the heads can be compared by eye.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 8. The net takes this size only.
        feature_dim: number of features D; 2 for pictures.

    Raises:
        ValueError: an image that is too small, or no features.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, feature_dim: Annotated[int, COUNT] = 2) -> None:
        super().__init__()
        check_images("lenetspp", in_channels, image_size)
        self.in_channels, self.image_size, self.feature_dim = in_channels, image_size, feature_dim
        layers: list[nn.Module] = []
        for w_in, w_out in ((in_channels, 32), (32, 64), (64, 128)):
            layers += [*prelu_convs(w_in, w_out, kernel=5, count=2), nn.MaxPool2d(2)]
        self.maps = nn.Sequential(*layers)
        self.fc = nn.Linear(128 * (image_size // 8) ** 2, feature_dim)
        self.act = nn.PReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, feature_dim]."""
        expect_images(images, self.in_channels, self.image_size)
        return self.act(self.fc(self.maps(images).flatten(1)))
