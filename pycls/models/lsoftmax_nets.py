"""The two MNIST nets of large-margin softmax (Liu et al., ICML 2016, table 1 and figure 2)."""

from typing import Annotated

from torch import Tensor, nn

from pycls.models.layers.blocks import batch_norm, check_images, expect_images, prelu_convs
from pycls.ranges import COUNT
from pycls.registry import MODELS


class _PreluNet(nn.Module):
    """Convolutional maps of 1/8 the image's side, a fully connected layer, batch norm, and no activation after it."""

    def __init__(
        self, maps: list[nn.Module], w_maps: int, shape: tuple[int, int], feature_dim: int, eps: float, mom: float
    ) -> None:
        super().__init__()
        self.in_channels, self.image_size = shape
        self.feature_dim = feature_dim
        self.maps = nn.Sequential(*maps)
        self.fc = nn.Linear(w_maps * (self.image_size // 8) ** 2, feature_dim)
        self.fc_bn = nn.BatchNorm1d(feature_dim, eps=eps, momentum=mom)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, feature_dim]."""
        expect_images(images, self.in_channels, self.image_size)
        return self.fc_bn(self.fc(self.maps(images).flatten(1)))


@MODELS.register("lsoftmax_mnist")
class LSoftmaxMnist(_PreluNet):
    """L-Softmax's MNIST net: batch norm of the input, 3 x 3 convolutions with PReLU and batch norm in groups of 1, 3,
    4 and 3, 2 x 2 max pooling after the last three groups, and a fully connected layer with batch norm.

    The order convolution, PReLU, batch norm is the published port's.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 8. The net takes this size only.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        width: channels of every convolution.
        feature_dim: number of features D.

    Raises:
        ValueError: an image that is too small, or a width below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        width: Annotated[int, COUNT] = 64,
        feature_dim: Annotated[int, COUNT] = 256,
    ) -> None:
        check_images("lsoftmax_mnist", in_channels, image_size)
        norm = batch_norm(bn_eps, bn_mom)
        maps = [norm(in_channels), *prelu_convs(in_channels, width, kernel=3, count=1, norm=norm)]
        for count in (3, 4, 3):
            maps += [*prelu_convs(width, width, kernel=3, count=count, norm=norm), nn.MaxPool2d(2)]
        super().__init__(maps, width, (in_channels, image_size), feature_dim, bn_eps, bn_mom)


@MODELS.register("lsoftmax_fig2")
class LSoftmaxFig2(_PreluNet):
    """The net of L-Softmax's figure 2: three pairs of 5 x 5 convolutions (32, 64, 128 channels) with PReLU and batch
    norm, 2 x 2 max pooling after each pair, and a fully connected layer with batch norm.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 8. The net takes this size only.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        feature_dim: number of features D; 2 for pictures.

    Raises:
        ValueError: an image that is too small, or no features.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        feature_dim: Annotated[int, COUNT] = 2,
    ) -> None:
        check_images("lsoftmax_fig2", in_channels, image_size)
        norm = batch_norm(bn_eps, bn_mom)
        maps: list[nn.Module] = []
        for w_in, w_out in ((in_channels, 32), (32, 64), (64, 128)):
            maps += [*prelu_convs(w_in, w_out, kernel=5, count=2, norm=norm), nn.MaxPool2d(2)]
        super().__init__(maps, 128, (in_channels, image_size), feature_dim, bn_eps, bn_mom)
