"""Compound scaling against its formulas, against pycls's rules stated again, and on nets that are built."""

import math
from itertools import product
from typing import Any

import pytest
import torch

from pycls.models.complexity import Complexity, complexity
from pycls.models.scaling import Factors, regnet_as_anynet, scale_model, scale_side, scaling_factors
from pycls.models.zoo_names import ARCHITECTURES
from pycls.registry import MODELS

KINDS = ["d", "w", "r", "dw", "dwr", "d1_w1_r1", "d1_w8_g8_r1", "d0.5_r2", "d1_w2_g2_r0", "wg"]
DEFAULTS = {"stem_type": "simple_stem_in", "stem_w": 32, "block_type": "res_bottleneck_block", "head_w": 0, "se_r": 0.25}
REGNET = {**DEFAULTS, "stride": 2, "bot_mul": 1.0, "se_on": False}


def options_of(name: str) -> tuple[str, dict[str, Any], int]:
    family, options, size = ARCHITECTURES[name]
    return family, {**(REGNET if family == "regnet" else DEFAULTS if family == "anynet" else {}), **options}, size


def counts_of(family: str, options: dict[str, Any], size: int) -> Complexity:
    with torch.device("meta"):
        return complexity(MODELS.get(family)(image_size=size, **options), 3, size)


@pytest.mark.parametrize(("kind", "scale"), product(KINDS, (0.25, 1.0, 2.0, 7.5, 64.0)))
def test_factors_multiply_to_the_scale(kind: str, scale: float) -> None:
    f = scaling_factors(kind, scale)
    assert f.depth * f.width**2 * f.side**2 == pytest.approx(scale, rel=1e-12)


def test_factors_by_hand() -> None:
    assert scaling_factors("dw", 16) == pytest.approx(Factors(4, 2, 1, 1))
    assert scaling_factors("d1_w1_g1_r0", 16) == pytest.approx(Factors(4, 2, 2, 1))
    assert scaling_factors("d1_w8_g8_r1", 2**20) == pytest.approx(Factors(2**2, 2**8, 2**8, 2))
    assert scaling_factors("dwgr", 64) == pytest.approx(Factors(4, 2, 2, 2))
    assert scaling_factors("g", 8) == pytest.approx(Factors(1, 1, 8, 1)), "a group's width alone"


@pytest.mark.parametrize("kind", ["", "x", "d1w2", "d1_w", "d_w2", "dd", "d1_d2", "d-1_w1", "d1__w1", "D"])
def test_what_is_no_kind(kind: str) -> None:
    with pytest.raises(ValueError, match="such as d1_w8_g8_r1"):
        scaling_factors(kind, 2.0)


@pytest.mark.parametrize(("kind", "scale"), [("dw", 0.0), ("dw", -1.0), ("dw", math.inf), ("d0_w0", 2.0)])
def test_what_is_no_scale(kind: str, scale: float) -> None:
    with pytest.raises(ValueError, match=r"more than 0|scales nothing"):
        scaling_factors(kind, scale)


def by_pycls(widths: list[int], ratios: list[float], groups: list[int], f: Factors) -> tuple[list[int], list[int]]:
    """Stage widths and group widths by the rules of pycls's scaler, a stage after the other, by search instead of by
    division: of all widths whose bottleneck is a whole number of groups, the nearest to the scaled one."""
    new_widths, new_groups = [], []
    for width, ratio, group in zip(widths, ratios, groups, strict=True):
        wide = max(8, 8 * round(width * f.width / 8))
        grown = max(1, round(group * f.group))
        allowed = [1, 2, 4, *range(8, 8192, 8)]
        if grown > 5:  # 6 and 7 go to 8; halves go to the even multiple, as Python rounds
            grown = min(allowed[3:], key=lambda m, grown=grown: (abs(m - grown), m % 16))
        elif grown > 2:
            grown = 4
        inside = max(1, int(wide * ratio))
        grown = min(grown, inside)
        step = grown if ratio <= 1 else math.lcm(grown, int(ratio))
        fits = [n * step for n in range(1, inside // step + 3)]
        inside = min(fits, key=lambda v, inside=inside, step=step: (abs(v - inside), v // step % 2))
        new_widths.append(int(inside / ratio))
        new_groups.append(grown)
    return new_widths, new_groups


ANYNETS = [name for name, net in ARCHITECTURES.items() if net.backbone in ("anynet", "regnet")]


@pytest.mark.parametrize("name", ANYNETS)
def test_stages_by_pyclss_rules(name: str) -> None:
    family, options, _ = options_of(name)
    stages = regnet_as_anynet(options) if family == "regnet" else options
    for kind, scale in product(("dw", "d1_w8_g8_r1", "wg", "g"), (0.3, 2.0, 4.0, 11.0)):
        f = scaling_factors(kind, scale)
        new_family, scaled = scale_model(family, options, f)
        wanted = by_pycls(stages["widths"], stages["bot_muls"], stages["group_ws"], f)
        assert new_family == "anynet" and (list(scaled["widths"]), list(scaled["group_ws"])) == wanted, (kind, scale)
        assert scaled["depths"] == [max(1, round(d * f.depth)) for d in stages["depths"]]
        assert (scaled["stem_w"], scaled["head_w"]) == (options["stem_w"], options["head_w"])


QUICK = ("RegNetX-200MF", "RegNetX-4.0GF", "RegNetX-32GF", "RegNetY-200MF", "RegNetY-1.6GF", "RegNetY-16GF")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES if name.startswith("RegNet")
])  # fmt: skip
def test_a_regnet_is_the_anynet_it_becomes(name: str) -> None:
    family, options, size = options_of(name)
    same_family, same = scale_model(family, options, Factors(1, 1, 1, 1))
    assert counts_of(same_family, same, size) == counts_of(family, options, size)


@pytest.mark.parametrize("name", ["RegNetX-400MF", "RegNetY-1.6GF", "ResNeXt-50", "EfficientNet-B0"])
def test_multiply_adds_grow_by_the_scale(name: str) -> None:
    """What rounding leaves of it: the depths of these nets are small numbers."""
    family, options, size = options_of(name)
    before = counts_of(family, options, size)
    for kind in ("w", "d1_w8_g8_r1", "dwr"):
        f = scaling_factors(kind, 8.0)
        after = counts_of(*scale_model(family, options, f), scale_side(size, f))
        assert 0.8 < after.flops / before.flops / 8 < 1.25, kind


def test_fast_scaling_makes_fewer_activations() -> None:
    """The point of the paper: activations go with depth width side^2, so with scale^0.6 instead of scale^0.83."""
    family, options, size = options_of("RegNetY-4.0GF")
    acts = {}
    for kind in ("d1_w8_g8_r1", "dwgr"):
        f = scaling_factors(kind, 8.0)
        acts[kind] = counts_of(*scale_model(family, options, f), scale_side(size, f)).acts
    assert acts["d1_w8_g8_r1"] < 0.7 * acts["dwgr"]


def test_efficientnet_by_hand() -> None:
    f = Factors(depth=1.2, width=1.4, group=1.0, side=1.29)
    family, scaled = scale_model("effnet", options_of("EfficientNet-B0")[1], f)
    assert family == "effnet" and scaled["depths"] == [1, 2, 2, 4, 4, 5, 1]
    assert scaled["widths"] == [24, 32, 56, 112, 160, 272, 448], "B4's, as its authors scaled it: 1.4 times the width"
    assert (scaled["stem_w"], scaled["head_w"], scale_side(224, f)) == (48, 1792, 288)


def test_nets_without_bottlenecks_have_no_groups() -> None:
    options = {**DEFAULTS, "block_type": "res_basic_block", "depths": [2, 3], "widths": [16, 30], "strides": [1, 2],
               "bot_muls": [], "group_ws": [], "se_on": False}  # fmt: skip
    scaled = scale_model("anynet", options, Factors(2, 2, 2, 1))[1]
    assert (scaled["depths"], scaled["widths"], scaled["group_ws"], scaled["bot_muls"]) == ([4, 6], [32, 64], [], [])


def test_other_models_are_not_scaled() -> None:
    with pytest.raises(ValueError, match="anynet, regnet and effnet can be scaled, not resnet"):
        scale_model("resnet", {}, Factors(2, 2, 2, 2))
