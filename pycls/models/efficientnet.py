"""EfficientNet (Tan and Le, ICML 2019) with pycls's options and names."""

from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.models.layers.blocks import (
    Activation,
    Layers,
    SqueezeExcitation,
    check_images,
    choose_layers,
    conv,
    global_average,
    init_he_fan_out,
)
from pycls.models.layers.residual import Stem
from pycls.ranges import COUNT, NONZERO_SHARE, PART
from pycls.registry import MODELS


class MBConv(nn.Module):
    """1 x 1 to ``exp_r`` times the channels, k x k by channel, squeeze-and-excitation, 1 x 1; a shortcut if that fits.

    In training the branch is dropped for a sample with probability ``dc_ratio``, and scaled up for the others.
    """

    def __init__(
        self, w_in: int, w_out: int, exp_r: float, kernel: int, stride: int, se_r: float, dc_ratio: float, layers: Layers
    ) -> None:
        super().__init__()
        w_exp = int(w_in * exp_r)
        self.has_exp = w_exp != w_in
        if self.has_exp:
            self.exp = conv(w_in, w_exp, 1)
            self.exp_bn = layers.norm(w_exp)
            self.exp_af = layers.act()
        self.dwise = conv(w_exp, w_exp, kernel, stride, groups=w_exp)
        self.dwise_bn = layers.norm(w_exp)
        self.dwise_af = layers.act()
        self.se = SqueezeExcitation(w_exp, int(w_in * se_r), layers.act)
        self.lin_proj = conv(w_exp, w_out, 1)
        self.lin_proj_bn = layers.norm(w_out)
        self.has_skip = stride == 1 and w_in == w_out
        self.dc_ratio = dc_ratio

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        f_x = self.exp_af(self.exp_bn(self.exp(x))) if self.has_exp else x
        f_x = self.se(self.dwise_af(self.dwise_bn(self.dwise(f_x))))
        f_x = self.lin_proj_bn(self.lin_proj(f_x))
        if not self.has_skip:
            return f_x
        if self.training and self.dc_ratio > 0:
            f_x = drop_connect(f_x, self.dc_ratio)
        return x + f_x


def drop_connect(x: Tensor, ratio: float) -> Tensor:
    """[N, C, H, W] with each sample set to 0 with probability ``ratio`` and divided by ``1 - ratio`` otherwise."""
    keep = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - ratio)
    return x / (1 - ratio) * keep


class HeadConv(nn.Module):
    """1 x 1 convolution, batch norm, activation, before the global average; in pycls a part of the head."""

    def __init__(self, w_in: int, w_out: int, layers: Layers) -> None:
        super().__init__()
        self.conv = conv(w_in, w_out, 1)
        self.conv_bn = layers.norm(w_out)
        self.conv_af = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H, W]."""
        return self.conv_af(self.conv_bn(self.conv(x)))


@MODELS.register("effnet")
class EffNet(nn.Module):
    """An EfficientNet, stage by stage; the defaults are B0's (Tan and Le, ICML 2019, table 1).

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least 2 times the product of all strides (32 for B0 to B7).
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        activation_fun: the activation function; empty for SiLU, which is swish.
        stem_w: channels of the stem, 3 x 3 at stride 2.
        depths: blocks of each stage.
        widths: channels of each stage.
        exp_ratios: how many times as many channels a block of each stage has inside.
        se_r: channels in the middle of squeeze-and-excitation, as a share of the block's input channels.
        strides: stride of each stage's first block.
        kernels: side of each stage's kernels, odd.
        head_w: channels of the 1 x 1 convolution before the global average, D.
        dc_ratio: probability that a block's branch is dropped for a sample in training.
        dropout_ratio: share of the features dropped in training.

    Raises:
        ValueError: lists of different lengths, ratios out of range, or an image that is too small.
    """

    section = "EN"

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 224,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        activation_fun: Activation = "",
        stem_w: Annotated[int, COUNT] = 32,
        depths: Annotated[tuple[int, ...], COUNT] = (1, 2, 2, 3, 3, 4, 1),
        widths: Annotated[tuple[int, ...], COUNT] = (16, 24, 40, 80, 112, 192, 320),
        exp_ratios: Annotated[tuple[float, ...], COUNT] = (1, 6, 6, 6, 6, 6, 6),
        se_r: Annotated[float, NONZERO_SHARE] = 0.25,
        strides: Annotated[tuple[int, ...], COUNT] = (1, 2, 2, 2, 1, 2, 1),
        kernels: Annotated[tuple[int, ...], COUNT] = (3, 3, 5, 3, 5, 5, 3),
        head_w: Annotated[int, COUNT] = 1280,
        dc_ratio: Annotated[float, PART] = 0.0,
        dropout_ratio: Annotated[float, PART] = 0.0,
    ) -> None:
        super().__init__()
        lists = (depths, widths, exp_ratios, strides, kernels)
        if not depths or len({len(entries) for entries in lists}) > 1:
            counts = ", ".join(str(len(entries)) for entries in lists)
            raise ValueError(
                f"effnet: depths, widths, exp_ratios, strides and kernels have an entry for each stage, not {counts}"
            )
        if any(k % 2 == 0 for k in kernels):
            raise ValueError(f"effnet: kernels are odd, not {list(kernels)}")
        if not int(min(stem_w, *widths) * se_r):
            raise ValueError(f"effnet: se_r {se_r:g} leaves no channel of {min(stem_w, *widths)} to squeeze them into")
        smallest = 2
        for stride in strides:
            smallest *= stride
        check_images("effnet", in_channels, image_size, max(8, smallest))
        layers = choose_layers(bn_eps, bn_mom, activation_fun, own="silu")
        self.stem = Stem(in_channels, stem_w, 3, 2, layers)
        self.stages = [f"s{i + 1}" for i in range(len(depths))]
        w_in = stem_w
        stages = zip(self.stages, *lists, strict=True)
        for name, depth, width, exp_r, stride, kernel in stages:
            blocks = nn.Sequential()
            for i in range(depth):
                block = MBConv(w_in, width, exp_r, kernel, 1 if i else stride, se_r, dc_ratio, layers)
                blocks.add_module(f"b{i + 1}", block)
                w_in = width
            self.add_module(name, blocks)
        self.head_conv = HeadConv(w_in, head_w, layers)
        self.dropout = nn.Dropout(dropout_ratio)
        self.feature_dim = head_w
        init_he_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, head_w]."""
        x = self.stem(images)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.dropout(global_average(self.head_conv(x)))
