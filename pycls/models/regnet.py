"""RegNet: stages whose widths follow a quantised line (Radosavovic et al., Designing Network Design Spaces, CVPR 2020)."""

from math import lcm
from typing import Annotated

import numpy as np

from pycls.models.anynet import AnyNet, BlockType, StemType
from pycls.models.layers.blocks import Activation
from pycls.ranges import COUNT, NONZERO_SHARE, NOT_NEGATIVE, POSITIVE, Range
from pycls.registry import MODELS

QUANTUM = 8
"""Widths are multiples of it."""


def regnet_stages(wa: float, w0: int, wm: float, depth: int) -> tuple[list[int], list[int]]:
    """Widths and depths of the stages (equations 2 to 4 of the paper): u_j = w0 + wa j, made powers of wm, then multiples
    of 8; blocks of one width are a stage.

    Raises:
        ValueError: parameters that give no net.
    """
    if w0 % QUANTUM:
        raise ValueError(f"regnet needs a w0 that is a multiple of {QUANTUM}, not {w0}")
    line = w0 + wa * np.arange(depth)
    powers = np.round(np.log(line / w0) / np.log(wm))
    blocks = np.round(w0 * np.power(wm, powers) / QUANTUM).astype(int) * QUANTUM
    widths, depths = np.unique(blocks, return_counts=True)
    return widths.tolist(), depths.tolist()


def fit_groups(width: int, bot_mul: float, group_w: int) -> tuple[int, int]:
    """The nearest width whose bottleneck can be cut into groups, and the group width, at most the bottleneck's."""
    bottleneck = int(max(1, width * bot_mul))
    group_w = min(group_w, bottleneck)
    multiple = lcm(group_w, int(bot_mul)) if bot_mul > 1 else group_w
    bottleneck = max(multiple, round(bottleneck / multiple) * multiple)
    return int(bottleneck / bot_mul), group_w


@MODELS.register("regnet")
class RegNet(AnyNet):
    """A RegNet: X without and Y with squeeze-and-excitation, Z with res_bottleneck_linear_block and SiLU.

    Six numbers say all widths and depths (CVPR 2020, section 3.3). Options and names are pycls's.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, at least the product of all strides (32 with four stages) and 8.
        bn_eps: batch norm's epsilon.
        bn_mom: batch norm's share of the newest batch in its running statistics.
        zero_init_final_gamma: start the last batch norm of each block at 0.
        activation_fun: the activation function; empty for ReLU.
        stem_type: res_stem_cifar (3 x 3), simple_stem_in (3 x 3 at stride 2) or res_stem_in (7 x 7 at stride 2, then
            max pooling).
        stem_w: channels of the stem.
        block_type: as in AnyNet.
        stride: stride of each stage's first block.
        se_on: squeeze-and-excitation (RegNetY).
        se_r: its channels in between, as a share of the block's input channels.
        depth: number of blocks.
        w0: width of the first block, a multiple of 8.
        wa: slope of the line that the blocks' widths follow.
        wm: ratio of one stage's width to the one's before.
        group_w: channels of each group of the 3 x 3.
        bot_mul: channels of the 3 x 3 as a multiple of the block's (1 / b of the paper); below 1 or whole.
        head_w: channels of a 1 x 1 convolution before the global average; 0 for none.

    Raises:
        ValueError: parameters that give no net, or an image that is too small.
    """

    own_options = frozenset({"depth"})

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
        stride: Annotated[int, COUNT] = 2,
        se_on: bool = False,
        se_r: Annotated[float, NONZERO_SHARE] = 0.25,
        depth: Annotated[int, COUNT] = 10,
        w0: Annotated[int, COUNT] = 32,
        wa: Annotated[float, NOT_NEGATIVE] = 5.0,
        wm: Annotated[float, Range(1, open_left=True)] = 2.5,
        group_w: Annotated[int, COUNT] = 16,
        bot_mul: Annotated[float, POSITIVE] = 1.0,
        head_w: Annotated[int, NOT_NEGATIVE] = 0,
    ) -> None:
        if bot_mul > 1 and bot_mul % 1:
            raise ValueError(f"regnet needs a bot_mul below 1 or whole, not {bot_mul:g}")
        widths, depths = regnet_stages(wa, w0, wm, depth)
        fitted = [fit_groups(width, bot_mul, group_w) for width in widths]
        count = len(depths)
        super().__init__(
            in_channels, image_size, bn_eps, bn_mom, zero_init_final_gamma, activation_fun, stem_type, stem_w, block_type,
            depths=tuple(depths), widths=tuple(width for width, _ in fitted), strides=(stride,) * count,
            bot_muls=(bot_mul,) * count, group_ws=tuple(group for _, group in fitted),
            head_w=head_w, se_on=se_on, se_r=se_r,
        )  # fmt: skip
