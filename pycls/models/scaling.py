"""Compound scaling: a net grown along depth, width, group width and image side at once.

Tan and Le, "EfficientNet", ICML 2019; Dollar, Singh and Girshick, "Fast and Accurate Model Scaling", CVPR 2021, with
pycls's roundings.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pycls.models.anynet import BOTTLENECKS
from pycls.models.regnet import fit_groups, regnet_stages

AXES = "dwgr"
QUANTUM = 8
"""Widths and wide groups are multiples of it."""
IMAGE_QUANTUM = 4


class Factors(NamedTuple):
    """By how much each of these grows: blocks of a stage, channels, channels of a group, side of an image."""

    depth: float
    width: float
    group: float
    side: float


def scaling_factors(kind: str, scale: float) -> Factors:
    """Factors for ``scale`` times the multiply-adds, which go with ``depth width^2 side^2``.

    ``scale`` is divided in proportion to the axes' weights e: ``depth = scale^(e_d / S)``, ``width = scale^(e_w / 2S)``,
    ``side = scale^(e_r / 2S)`` with ``S = e_d + e_w + e_r``. A group's width costs nothing where the others are scaled:
    ``group = scale^(e_g / 2S)``, equal to ``width`` for equal weights; alone it grows by ``scale``.

    Args:
        kind: the axes to scale, ``dw``, or with their weights, ``d1_w8_g8_r1``, which is the paper's fast compound scaling.
        scale: more than 0; below 1 shrinks.

    Raises:
        ValueError: if ``kind`` is not so written, or a scale or all weights are 0.
    """
    weights = _read_weights(kind)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"the scale must be more than 0, not {scale:g}")
    total = weights["d"] + weights["w"] + weights["r"] or weights["g"] / 2
    if not total:
        raise ValueError(f"{kind!r} scales nothing")
    halves = {axis: scale ** (weights[axis] / total / 2) for axis in AXES}
    return Factors(depth=halves["d"] ** 2, width=halves["w"], group=halves["g"], side=halves["r"])


def _read_weights(kind: str) -> dict[str, float]:
    entries = kind.split("_") if re.search(r"\d", kind) else [f"{axis}1" for axis in kind]
    weights = {entry[:1]: float(entry[1:]) for entry in entries if re.fullmatch(r"[dwgr]\d+(\.\d+)?", entry)}
    if not weights or len(weights) != len(entries):
        raise ValueError(
            f"expected some of d, w, g and r, such as dw, or those with weights, such as d1_w8_g8_r1, found {kind!r}"
        )
    return dict.fromkeys(AXES, 0.0) | weights


def scale_model(name: str, options: Mapping[str, Any], factors: Factors) -> tuple[str, dict[str, Any]]:
    """A model's name and options, scaled; a RegNet becomes the AnyNet that it is.

    Args:
        name: anynet, regnet or effnet.
        options: all of its options, by argument name.
        factors: by how much.

    Raises:
        ValueError: for another model.
    """
    if name == "effnet":
        return name, _scale_effnet(options, factors)
    if name == "regnet":
        name, options = "anynet", regnet_as_anynet(options)
    if name == "anynet":
        return name, _scale_anynet(options, factors)
    raise ValueError(f"of the models anynet, regnet and effnet can be scaled, not {name}")


def scale_side(side: int, factors: Factors) -> int:
    """The side of an image, a multiple of 4 pixels."""
    return max(1, round(side * factors.side / IMAGE_QUANTUM)) * IMAGE_QUANTUM


def regnet_as_anynet(options: Mapping[str, Any]) -> dict[str, Any]:
    """A RegNet's own options as those of the same net, given stage by stage."""
    widths, depths = regnet_stages(options["wa"], options["w0"], options["wm"], options["depth"])
    fitted = [fit_groups(width, options["bot_mul"], options["group_w"]) for width in widths]
    same = ("stem_type", "stem_w", "block_type", "head_w", "se_on", "se_r")
    return {key: options[key] for key in same} | {
        "depths": depths,
        "widths": [width for width, _ in fitted],
        "strides": [options["stride"]] * len(depths),
        "bot_muls": [options["bot_mul"]] * len(depths),
        "group_ws": [group_w for _, group_w in fitted],
    }


def _scale_anynet(options: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    widths = [_scale_width(width, factors) for width in options["widths"]]
    scaled = {"depths": _scale_depths(options["depths"], factors), "widths": widths}
    if options["block_type"] in BOTTLENECKS:
        groups = [_scale_group(group_w, factors) for group_w in options["group_ws"]]
        fitted = [fit_groups(*stage) for stage in zip(widths, options["bot_muls"], groups, strict=True)]
        scaled |= {"widths": [width for width, _ in fitted], "group_ws": [group_w for _, group_w in fitted]}
    return {**options, **scaled}


def _scale_effnet(options: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    return {
        **options,
        "depths": _scale_depths(options["depths"], factors),
        "widths": [_scale_width(width, factors) for width in options["widths"]],
        "stem_w": _scale_width(options["stem_w"], factors),
        "head_w": _scale_width(options["head_w"], factors),
    }


def _scale_depths(depths: Sequence[int], factors: Factors) -> list[int]:
    return [max(1, round(depth * factors.depth)) for depth in depths]


def _scale_width(width: int, factors: Factors) -> int:
    return max(1, round(width * factors.width / QUANTUM)) * QUANTUM


def _scale_group(group_w: int, factors: Factors) -> int:
    """1, 2, 4 or a multiple of 8."""
    scaled = max(1, round(group_w * factors.group))
    return scaled if scaled <= 2 else 4 if scaled <= 5 else round(scaled / QUANTUM) * QUANTUM
