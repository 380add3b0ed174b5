"""LeNet-5 in its modern form: ReLU and max pooling (LeCun et al. 1998; widths of Caffe's MNIST example)."""

from typing import Annotated

from torch import Tensor, nn

from pycls.models.layers.blocks import batch_norm as make_batch_norm
from pycls.models.layers.blocks import check_images, expect_images
from pycls.ranges import COUNT
from pycls.registry import MODELS

UNPADDED_FROM = 24
"""Side from which the 5 x 5 convolutions go without padding, as in the original; smaller images would shrink away."""


@MODELS.register("lenet5")
class LeNet5(nn.Module):
    """Two 5 x 5 convolutions, each with ReLU and 2 x 2 max pooling, and one fully connected layer of features.

    28 x 28 pixels become 24, 12, 8, 4. Images of fewer than 24 x 24 pixels are padded at both convolutions, so that
    8 x 8 becomes 8, 4, 4, 2. The classic widths are 6, 16 and 84; Caffe's, the default, are worth their cost on MNIST.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 8. The net takes this size only.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        conv1_width: channels of the first convolution.
        conv2_width: channels of the second convolution.
        feature_dim: number of features D.
        batch_norm: put batch norm after both convolutions.

    Raises:
        ValueError: an image that is too small, or a width below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        conv1_width: Annotated[int, COUNT] = 20,
        conv2_width: Annotated[int, COUNT] = 50,
        feature_dim: Annotated[int, COUNT] = 500,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_images("lenet5", in_channels, image_size)
        self.in_channels, self.image_size, self.feature_dim = in_channels, image_size, feature_dim
        padding = 0 if image_size >= UNPADDED_FROM else 2
        side = image_size
        layers: list[nn.Module] = []
        for w_in, w_out in ((in_channels, conv1_width), (conv1_width, conv2_width)):
            layers.append(nn.Conv2d(w_in, w_out, 5, padding=padding, bias=not batch_norm))
            if batch_norm:
                layers.append(make_batch_norm(bn_eps, bn_mom)(w_out))
            # ReLU and max commute: pooling first leaves a quarter of the values to ReLU
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
            side = (side + 2 * padding - 4) // 2
        self.maps = nn.Sequential(*layers)
        self.fc = nn.Linear(conv2_width * side * side, feature_dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, feature_dim], not negative."""
        expect_images(images, self.in_channels, self.image_size)
        return self.act(self.fc(self.maps(images).flatten(1)))
