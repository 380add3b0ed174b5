"""DenseNet (Huang et al., CVPR 2017): every layer sees the channels of all layers before it. Names are torchvision's."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pycls.models.layers.blocks import (
    NormFactory,
    batch_norm,
    check_images,
    conv,
    global_average,
    init_he_fan_out,
)
from pycls.ranges import COUNT, NONZERO_SHARE, NOT_NEGATIVE, PART
from pycls.registry import MODELS

BLOCKS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
"""Depth -> layers of each block, in the form for ImageNet (table 1 of the paper)."""


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1 x 1 to ``bn_size`` times the growth, batch norm, ReLU, 3 x 3; added to the channels.

    Without a bottleneck (``bn_size`` 0) the 1 x 1 and what goes with it are left out.
    """

    def __init__(self, w_in: int, growth: int, bn_size: int, dropout: float, norm: NormFactory) -> None:
        super().__init__()
        w_b = bn_size * growth
        self.norm1 = norm(w_in)
        self.conv1 = conv(w_in, w_b, 1) if w_b else conv(w_in, growth, 3)
        self.norm2 = norm(w_b) if w_b else None
        self.conv2 = conv(w_b, growth, 3) if w_b else None
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_in + growth, H, W]."""
        new = self.conv1(self.act(self.norm1(x)))
        if self.norm2 is not None and self.conv2 is not None:
            new = self.conv2(self.act(self.norm2(new)))
        return torch.cat([x, self.dropout(new)], 1)


def _transition(w_in: int, w_out: int, norm: NormFactory) -> nn.Sequential:
    """Batch norm, ReLU, 1 x 1, 2 x 2 average pooling."""
    layers = nn.Sequential()
    layers.add_module("norm", norm(w_in))
    layers.add_module("relu", nn.ReLU(inplace=True))
    layers.add_module("conv", conv(w_in, w_out, 1))
    layers.add_module("pool", nn.AvgPool2d(2))
    return layers


def _layer_counts(depth: int, bottleneck: bool) -> tuple[int, ...]:
    """Layers of each block. Raises ``ValueError`` for a depth that no DenseNet has."""
    if depth in BLOCKS and bottleneck:
        return BLOCKS[depth]
    per_layer = 3 * (2 if bottleneck else 1)
    if depth < 4 + per_layer or (depth - 4) % per_layer:
        known = ", ".join(map(str, BLOCKS))
        raise ValueError(f"densenet has depths {known} (ImageNet form), 6 n + 4 with bottlenecks (CIFAR form: 40, 100 ...) "
                         f"and 3 n + 4 without, not {depth}")  # fmt: skip
    return ((depth - 4) // per_layer,) * 3


@MODELS.register("densenet")
class DenseNet(nn.Module):
    """A DenseNet, in its form for ImageNet (121, 161, 169, 201) or for CIFAR (three blocks), which the depth decides.

    The CIFAR form with bottlenecks and compression is DenseNet-BC: depth 40 and growth_rate 40, or 100 and 12; without
    them (``bottleneck`` off, ``reduction`` 1) the plain DenseNet of the paper.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels: at least 32 with the ImageNet stem, 8 with the CIFAR stem.
        depth: 121, 161, 169, 201, or 6 n + 4 with bottlenecks and 3 n + 4 without; 0 for 40 on images below 64 x 64 and
            121 otherwise.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        growth_rate: channels that each layer adds; 0 for the depth's own (32, 48 for 161, 12 for the CIFAR form).
        bottleneck: a 1 x 1 convolution before each 3 x 3.
        bn_size: its channels, as a multiple of growth_rate.
        reduction: share of the channels that a transition keeps, above 0 up to 1.
        dropout: share of each layer's new channels dropped in training, from 0 to below 1.
        stem: imagenet (7 x 7 at stride 2, max pooling), cifar (3 x 3 at stride 1), or auto for the depth's own.

    Raises:
        ValueError: an unknown depth, an option out of range, or an image that is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 224,
        depth: int = 0,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        growth_rate: Annotated[int, NOT_NEGATIVE] = 0,
        bottleneck: bool = True,
        bn_size: Annotated[int, COUNT] = 4,
        reduction: Annotated[float, NONZERO_SHARE] = 0.5,
        dropout: Annotated[float, PART] = 0.0,
        stem: Literal["auto", "imagenet", "cifar"] = "auto",
    ) -> None:
        super().__init__()
        depth = depth or (40 if image_size < 64 else 121)
        counts = _layer_counts(depth, bottleneck)
        is_imagenet = len(counts) == 4
        growth = growth_rate or ((48 if depth == 161 else 32) if is_imagenet else 12)
        if stem not in ("auto", "imagenet", "cifar"):
            raise ValueError(f"densenet: stem is auto, imagenet or cifar, not {stem!r}")
        imagenet_stem = stem == "imagenet" or (stem == "auto" and is_imagenet)
        if imagenet_stem:
            remedy = "DENSENET.STEM cifar takes smaller ones"
            check_images("densenet with the ImageNet stem", in_channels, image_size, 32, remedy)
        else:
            check_images("densenet", in_channels, image_size)
        norm = batch_norm(bn_eps, bn_mom)
        width = 2 * growth if bottleneck else 16
        self.features = nn.Sequential()
        self.features.add_module("conv0", conv(in_channels, width, *((7, 2) if imagenet_stem else (3, 1))))
        if imagenet_stem:
            self.features.add_module("norm0", norm(width))
            self.features.add_module("relu0", nn.ReLU(inplace=True))
            self.features.add_module("pool0", nn.MaxPool2d(3, 2, padding=1))
        for i, count in enumerate(counts, 1):
            block = nn.Sequential()
            for j in range(1, count + 1):
                block.add_module(f"denselayer{j}", DenseLayer(width, growth, bn_size * bottleneck, dropout, norm))
                width += growth
            self.features.add_module(f"denseblock{i}", block)
            if i < len(counts):
                kept = int(width * reduction)
                self.features.add_module(f"transition{i}", _transition(width, kept, norm))
                width = kept
        self.features.add_module("norm5", norm(width))
        self.act = nn.ReLU(inplace=True)
        self.feature_dim = width
        init_he_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]."""
        return global_average(self.act(self.features(images)))
