"""Residual networks (He et al. 2016) and ResNeXt (Xie et al. 2017), with pycls's options and module names."""

from typing import Annotated, Literal

from torch import Tensor, nn

from pycls.models.layers.blocks import Activation, check_images, choose_layers, global_average, init_he_fan_out
from pycls.models.layers.residual import BasicTransform, BottleneckTransform, ResBlock, Stem, zero_final_gammas
from pycls.ranges import COUNT
from pycls.registry import MODELS

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Depth -> blocks of each stage, in the form for ImageNet (table 1 of the paper)."""

BASIC, BOTTLENECK = "basic_transform", "bottleneck_transform"


def _choose_depth(depth: int, image_size: int) -> int:
    """The depth, chosen by the image if it is 0. Raises ``ValueError`` for one that no ResNet has."""
    if depth == 0:
        return 20 if image_size < 64 else 50
    if depth not in BLOCKS and (depth < 8 or (depth - 2) % 6):
        known = ", ".join(map(str, BLOCKS))
        raise ValueError(f"resnet has depths {known} (ImageNet form) and 6 n + 2 (CIFAR form: 20, 32 ...), not {depth}")
    return depth


def _choose_transform(depth: int, trans_fun: str, num_groups: int, width_per_group: int) -> str:
    """The blocks' transform. Raises ``ValueError`` where the options contradict the depth or each other."""
    own = BOTTLENECK if depth in BLOCKS and depth >= 50 else BASIC
    if trans_fun not in ("", own):
        raise ValueError(f"a resnet of depth {depth} is made of {own} blocks, not {trans_fun}")
    if own == BASIC and (num_groups, width_per_group) != (1, 64):
        raise ValueError(
            f"resnet: num_groups {num_groups} and width_per_group {width_per_group} need bottleneck_transform (depths "
            f"50, 101, 152); {own} has 1 and 64"
        )
    return own


def _choose_stem(depth: int, stem: str) -> bool:
    """Whether the stem is ImageNet's. Raises ``ValueError`` for a CIFAR form with an ImageNet stem."""
    if stem not in ("auto", "imagenet", "cifar"):
        raise ValueError(f"resnet: stem is auto, imagenet or cifar, not {stem!r}")
    if stem == "imagenet" and depth not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        raise ValueError(f"resnet of depth {depth} is the CIFAR form; the ImageNet stem is for depths {known}")
    return depth in BLOCKS and stem != "cifar"


@MODELS.register("resnet")
class ResNet(nn.Module):
    """A residual network, in its form for ImageNet or for CIFAR, which the depth decides.

    Depths 10, 18, 34 (basic blocks) and 50, 101, 152 (bottlenecks) have four stages of 64, 128, 256 and 512 channels,
    times 4 with bottlenecks; depths 6 n + 2 have three stages of 16, 32 and 64 channels and n basic blocks in each.
    Shortcuts that change shape are 1 x 1 convolutions in both forms (option B of the paper), as in pycls. The names of
    the parameters are pycls's.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels: at least 32 with the ImageNet stem, 8 with the CIFAR stem.
        depth: 10, 18, 34, 50, 101, 152 or 6 n + 2; 0 for 20 on images below 64 x 64 and 50 otherwise.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        zero_init_final_gamma: start the last batch norm of each block at 0, so that each block starts as the identity.
        activation_fun: the activation function; empty for ReLU.
        trans_fun: basic_transform or bottleneck_transform; empty for the one that belongs to the depth, which is the
            only one it goes with.
        num_groups: groups of a bottleneck's 3 x 3 convolution (ResNeXt's cardinality).
        width_per_group: channels of each group in the first stage; the later stages have 2, 4 and 8 times as many.
        stride_1x1: where a bottleneck strides: on its first 1 x 1 (the paper, and the default as in pycls), or on its
            3 x 3 (false; torchvision and pycls's Model Zoo).
        stem: imagenet (7 x 7 at stride 2, max pooling), cifar (3 x 3 at stride 1), or auto for the depth's own.

    Raises:
        ValueError: an unknown depth, options that contradict each other, or an image that is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 224,
        depth: int = 0,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        zero_init_final_gamma: bool = False,
        activation_fun: Activation = "",
        trans_fun: Literal["", "basic_transform", "bottleneck_transform"] = "",
        num_groups: Annotated[int, COUNT] = 1,
        width_per_group: Annotated[int, COUNT] = 64,
        stride_1x1: bool = True,
        stem: Literal["auto", "imagenet", "cifar"] = "auto",
    ) -> None:
        super().__init__()
        depth = _choose_depth(depth, image_size)
        transform = _choose_transform(depth, trans_fun, num_groups, width_per_group)
        imagenet_stem = _choose_stem(depth, stem)
        if imagenet_stem:
            remedy = "RESNET.STEM cifar takes smaller ones"
            check_images("resnet with the ImageNet stem", in_channels, image_size, 32, remedy)
        else:
            check_images("resnet", in_channels, image_size)
        layers = choose_layers(bn_eps, bn_mom, activation_fun)

        def build_transform(stage: int, w_in: int, w_out: int, stride: int) -> nn.Module:
            if transform == BASIC:
                return BasicTransform(w_in, w_out, stride, layers)
            w_b = num_groups * width_per_group * 2**stage
            return BottleneckTransform(w_in, w_out, stride, layers, w_b, num_groups, stride_1x1=stride_1x1)

        w_in = 64 if depth in BLOCKS else 16
        counts = BLOCKS.get(depth, ((depth - 2) // 6,) * 3)
        expansion = 4 if transform == BOTTLENECK else 1
        kernel, stride = (7, 2) if imagenet_stem else (3, 1)
        self.stem = Stem(in_channels, w_in, kernel, stride, layers, pool=imagenet_stem)
        self.stages = [f"s{i + 1}" for i in range(len(counts))]
        w_first = w_in * expansion
        for stage, (name, count) in enumerate(zip(self.stages, counts, strict=True)):
            w_out = w_first * 2**stage
            blocks = nn.Sequential()
            for i in range(count):
                stride = 2 if stage and not i else 1
                f = build_transform(stage, w_in, w_out, stride)
                blocks.add_module(f"b{i + 1}", ResBlock(w_in, w_out, stride, layers, f))
                w_in = w_out
            self.add_module(name, blocks)
        self.feature_dim = w_in
        init_he_fan_out(self)
        if zero_init_final_gamma:
            zero_final_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]; D is 64 (CIFAR form), 512 or 2048."""
        x = self.stem(images)
        for name in self.stages:
            x = getattr(self, name)(x)
        return global_average(x)
