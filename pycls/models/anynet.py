"""AnyNet: stem, stages of equal blocks, and whatever depth and width each stage is given (Radosavovic et al. 2019, 2020)."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, NamedTuple

from torch import Tensor, nn

from pycls.models.layers.blocks import (
    SMALLEST_SIDE,
    Activation,
    Layers,
    check_images,
    choose_layers,
    conv,
    global_average,
    init_he_fan_out,
)
from pycls.models.layers.residual import (
    BasicTransform,
    BottleneckTransform,
    LinearBlock,
    ResBlock,
    Stem,
    VanillaBlock,
    zero_final_gammas,
)
from pycls.ranges import COUNT, NONZERO_SHARE, NOT_NEGATIVE, POSITIVE
from pycls.registry import MODELS

StemType = Literal["res_stem_cifar", "res_stem_in", "simple_stem_in"]
BlockType = Literal["vanilla_block", "res_basic_block", "res_bottleneck_block", "res_bottleneck_linear_block"]

STEMS = {"res_stem_cifar": (3, 1, False), "res_stem_in": (7, 2, True), "simple_stem_in": (3, 2, False)}
"""Name -> kernel, stride, and whether max pooling follows."""

BOTTLENECKS = ("res_bottleneck_block", "res_bottleneck_linear_block")
BLOCKS = ("vanilla_block", "res_basic_block", *BOTTLENECKS)


class Stage(NamedTuple):
    """Blocks, channels, stride of the first block, bottleneck multiplier and group width of one stage."""

    depth: int
    width: int
    stride: int
    bot_mul: float = 1.0
    group_w: int = 1


class HeadConv(nn.Module):
    """1 x 1 convolution, batch norm, activation, before the global average; in pycls a part of the head."""

    def __init__(self, w_in: int, w_out: int, layers: Layers) -> None:
        super().__init__()
        self.conv = conv(w_in, w_out, 1)
        self.bn = layers.norm(w_out)
        self.af = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H, W]."""
        return self.af(self.bn(self.conv(x)))


@MODELS.register("anynet")
class AnyNet(nn.Module):
    """A net of stages that are given one by one (Radosavovic et al., On Network Design Spaces, ICCV 2019).

    With it ResNets, ResNeXts and RegNets are written down, and whatever lies between. Options and names are pycls's.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least the product of all strides and 8.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        zero_init_final_gamma: start the last batch norm of each residual block at 0.
        activation_fun: the activation function; empty for ReLU.
        stem_type: res_stem_cifar (3 x 3), simple_stem_in (3 x 3 at stride 2) or res_stem_in (7 x 7 at stride 2, then
            max pooling).
        stem_w: channels of the stem.
        block_type: vanilla_block (two 3 x 3), res_basic_block (the same with a shortcut), res_bottleneck_block (1 x 1,
            3 x 3 in groups, 1 x 1), or res_bottleneck_linear_block (that without the last activation and without
            projections).
        depths: blocks of each stage.
        widths: channels of each stage.
        strides: stride of each stage's first block.
        bot_muls: bottleneck blocks: channels of the 3 x 3 of each stage, as a multiple of the stage's.
        group_ws: bottleneck blocks: channels of each group of the 3 x 3 of each stage.
        head_w: channels of a 1 x 1 convolution before the global average; 0 for none.
        se_on: bottleneck blocks: squeeze-and-excitation after the 3 x 3.
        se_r: its channels in between, as a share of the block's input channels.

    Raises:
        ValueError: lists of different lengths, options that the blocks do not have, or an image that is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 224,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        zero_init_final_gamma: bool = False,
        activation_fun: Activation = "",
        stem_type: StemType = "simple_stem_in",
        stem_w: Annotated[int, COUNT] = 32,
        block_type: BlockType = "res_bottleneck_block",
        depths: Annotated[tuple[int, ...], COUNT] = (),
        widths: Annotated[tuple[int, ...], COUNT] = (),
        strides: Annotated[tuple[int, ...], COUNT] = (),
        bot_muls: Annotated[tuple[float, ...], POSITIVE] = (),
        group_ws: Annotated[tuple[int, ...], COUNT] = (),
        head_w: Annotated[int, NOT_NEGATIVE] = 0,
        se_on: bool = False,
        se_r: Annotated[float, NONZERO_SHARE] = 0.25,
    ) -> None:
        super().__init__()
        if block_type not in BLOCKS or stem_type not in STEMS:
            kind, known = (block_type, BLOCKS) if block_type not in BLOCKS else (stem_type, tuple(STEMS))
            raise ValueError(f"anynet has no {kind!r}; it has: {', '.join(known)}")
        if block_type not in BOTTLENECKS and (bot_muls or group_ws or se_on):
            raise ValueError(f"anynet: bot_muls, group_ws and se_on are for bottleneck blocks, not for {block_type}")
        stages = _read_stages(depths, widths, strides, bot_muls, group_ws, block_type)
        kernel, stride, pool = STEMS[stem_type]
        smallest = max(SMALLEST_SIDE, stride * (2 if pool else 1) * prod(stage.stride for stage in stages))
        check_images(type(self).__name__.lower(), in_channels, image_size, smallest)
        layers = choose_layers(bn_eps, bn_mom, activation_fun)
        self.stem = Stem(in_channels, stem_w, kernel, stride, layers, pool)
        self.stages = [f"s{i + 1}" for i in range(len(stages))]
        w_in = stem_w
        for name, stage in zip(self.stages, stages, strict=True):
            blocks = nn.Sequential()
            for i in range(stage.depth):
                block = _build_block(block_type, w_in, stage, 1 if i else stage.stride, layers, se_r if se_on else 0.0)
                blocks.add_module(f"b{i + 1}", block)
                w_in = stage.width
            self.add_module(name, blocks)
        self.head_conv = HeadConv(w_in, head_w, layers) if head_w > 0 else None
        self.feature_dim = head_w or w_in
        init_he_fan_out(self)
        if zero_init_final_gamma:
            zero_final_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]; D is head_w, or the last stage's width."""
        x = self.stem(images)
        for name in self.stages:
            x = getattr(self, name)(x)
        return global_average(x if self.head_conv is None else self.head_conv(x))


def _read_stages(
    depths: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int],
    bot_muls: Sequence[float],
    group_ws: Sequence[int],
    block_type: str,
) -> list[Stage]:
    """One entry a stage. Raises ``ValueError`` where the lists do not go together."""
    if not depths or not len(depths) == len(widths) == len(strides):
        counts = f"{len(depths)}, {len(widths)} and {len(strides)}"
        raise ValueError(f"anynet: depths, widths and strides have an entry for each stage, not {counts}")
    if block_type not in BOTTLENECKS:
        return [Stage(*entry) for entry in zip(depths, widths, strides, strict=True)]
    if not len(depths) == len(bot_muls) == len(group_ws):
        counts = f"{len(bot_muls)} and {len(group_ws)}"
        raise ValueError(f"anynet: {block_type} needs bot_muls and group_ws for {len(depths)} stages, not {counts}")
    stages = [Stage(*entry) for entry in zip(depths, widths, strides, bot_muls, group_ws, strict=True)]
    for stage in stages:
        if not _bottleneck_width(stage) or _bottleneck_width(stage) % stage.group_w:
            raise ValueError(
                f"anynet: a width of {stage.width} times bot_mul {stage.bot_mul:g} cannot be cut into groups of "
                f"{stage.group_w}"
            )
    return stages


def _bottleneck_width(stage: Stage) -> int:
    return round(stage.width * stage.bot_mul)


def _build_block(block_type: str, w_in: int, stage: Stage, stride: int, layers: Layers, se_r: float) -> nn.Module:
    w_out = stage.width
    if block_type == "vanilla_block":
        return VanillaBlock(w_in, w_out, stride, layers)
    if block_type == "res_basic_block":
        return ResBlock(w_in, w_out, stride, layers, BasicTransform(w_in, w_out, stride, layers))
    w_b = _bottleneck_width(stage)
    f = BottleneckTransform(w_in, w_out, stride, layers, w_b, w_b // stage.group_w, w_se=round(w_in * se_r))
    if block_type == "res_bottleneck_block":
        return ResBlock(w_in, w_out, stride, layers, f)
    return LinearBlock(w_in, w_out, stride, f)
