"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016): few layers, many channels, pre-activation."""

from typing import Annotated

from torch import Tensor, nn

from pycls.models.layers.blocks import (
    NormFactory,
    batch_norm,
    check_images,
    conv,
    global_average,
    init_he_fan_out,
)
from pycls.ranges import COUNT, PART
from pycls.registry import MODELS


class WideBlock(nn.Module):
    """Batch norm, ReLU, 3 x 3, batch norm, ReLU, dropout, 3 x 3, added to the input (B(3,3) of the paper).

    Where the shape changes, the shortcut is a 1 x 1 convolution of the activated input, as in the authors' code.
    """

    def __init__(self, w_in: int, w_out: int, stride: int, dropout: float, norm: NormFactory) -> None:
        super().__init__()
        self.a_bn = norm(w_in)
        self.a = conv(w_in, w_out, 3, stride)
        self.b_bn = norm(w_out)
        self.b = conv(w_out, w_out, 3)
        self.proj = conv(w_in, w_out, 1, stride) if w_in != w_out or stride != 1 else None
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        active = self.act(self.a_bn(x))
        shortcut = x if self.proj is None else self.proj(active)
        return shortcut + self.b(self.dropout(self.act(self.b_bn(self.a(active)))))


@MODELS.register("wrn")
class WideResNet(nn.Module):
    """WRN-depth-k: a 3 x 3 stem of 16 channels and three stages of 16 k, 32 k and 64 k channels at strides 1, 2, 2.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 8.
        depth: 6 n + 4 with n blocks a stage (10, 16, 22, 28, 40 ...); 0 for 28.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        widen_factor: k, the multiple of a plain ResNet's channels.
        dropout: share of the activations dropped between a block's two convolutions, from 0 to below 1.

    Raises:
        ValueError: an impossible depth, widening or dropout, or an image that is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        depth: int = 28,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        widen_factor: Annotated[int, COUNT] = 10,
        dropout: Annotated[float, PART] = 0.0,
    ) -> None:
        super().__init__()
        depth = depth or 28
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"wrn has depths 6 n + 4: 10, 16, 22, 28, 34, 40 ..., not {depth}")
        check_images("wrn", in_channels, image_size)
        norm = batch_norm(bn_eps, bn_mom)
        self.stem = conv(in_channels, 16, 3)
        blocks: list[nn.Module] = []
        w_in = 16
        for w_out, stride in ((16 * widen_factor, 1), (32 * widen_factor, 2), (64 * widen_factor, 2)):
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(w_in, w_out, 1 if i else stride, dropout, norm))
                w_in = w_out
        self.blocks = nn.Sequential(*blocks)
        self.bn = norm(w_in)
        self.act = nn.ReLU(inplace=True)
        self.feature_dim = w_in
        init_he_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, 64 widen_factor]."""
        return global_average(self.act(self.bn(self.blocks(self.stem(images)))))
