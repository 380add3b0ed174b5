"""The spellings of TRAIN.AUGMENT, pycls's and timm's -> the policy that they mean."""

import math
import re
from collections.abc import Callable

from pycls.data.augment.policies import INCREASING, ORIGINAL, WIDE, AugMix, AutoAugment, Policy, RandAugment, Strength
from pycls.errors import InputError

SUPPORTED = (
    "AutoAugment, RandAugment_N2_M0.5 (also _P0.5), TrivialAugmentWide, AugMix; and timm's "
    "rand-m9-n2-p0.5-mstd0.5-mmax10-inc1, v0-mstd0.5, augmix-m3-w3-d2-mstd0.5"
)

_V0 = """
equalize .8 1, shear_y .8 4; color .4 9, equalize .6 3; color .4 1, rotate .6 8; solarize .8 3, equalize .4 7;
solarize .4 2, solarize .6 2; color .2 0, equalize .8 8; equalize .4 8, solarize_add .8 3; shear_x .2 9, rotate .6 8;
color .6 1, equalize 1 2; invert .4 9, rotate .6 0; equalize 1 9, shear_y .6 3; color .4 7, equalize .6 0;
posterize .4 6, autocontrast .4 7; solarize .6 8, color .6 9; solarize .2 4, rotate .8 9; rotate 1 7, translate_y .8 9;
shear_x 0 0, solarize .8 4; shear_y .8 0, color .6 4; color 1 0, rotate .6 2; equalize .8 4, equalize 0 8;
equalize 1 4, autocontrast .6 2; shear_y .4 7, solarize_add .6 7; posterize .8 2, solarize .6 10; solarize .6 8, equalize .6 1;
color .8 6, rotate .4 5
"""
"""ImageNet's policy in EfficientNet's code: operation, probability, magnitude of 10."""


def _pair(text: str) -> tuple[tuple[str, float, float], ...]:
    steps = (step.split() for step in text.split(","))
    return tuple((name, float(prob), float(magnitude) / 10) for name, prob, magnitude in steps)


V0 = tuple(_pair(text) for text in _V0.split(";"))


def parse(text: str) -> Policy | None:
    """The policy of a spelling; None for the empty one.

    Raises:
        InputError: it is none, naming what is at fault and those there are.
    """
    if not text:
        return None
    separator = "_" if text[0].isupper() else "-"
    name, *parts = text.split(separator)
    makers = {"RandAugment": (_pycls_rand, "NMP"), "AutoAugment": (lambda given: AutoAugment(V0), ""),
              "TrivialAugmentWide": (lambda given: RandAugment(WIDE, 1, Strength(1.0, math.inf)), ""),
              "AugMix": (lambda given: AugMix(Strength(0.3, math.inf)), ""),
              "rand": (_timm_rand, ("m", "n", "p", "mstd", "mmax", "inc")), "v0": (_timm_auto, ("mstd",)),
              "augmix": (_timm_augmix, ("m", "w", "d", "mstd"))}  # fmt: skip
    if name not in makers:
        raise InputError(f"there is no augmentation {text!r}; there are: {SUPPORTED}")
    make, keys = makers[name]
    given: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"([A-Za-z]+)(\d+\.?\d*|\.\d+|inf)", part)
        if not found or found[1] not in keys or found[1] in given:
            own = f"{name} takes {', '.join(keys)}, each once, with a number" if keys else f"{name} takes nothing"
            raise InputError(f"{text!r}: {part!r} is not understood; {own}")
        given[found[1]] = float(found[2])
    return _checked(make, given, text)


def _checked(make: Callable[[dict[str, float]], Policy], given: dict[str, float], text: str) -> Policy:
    for key, low, high in (("M", 0, 1), ("P", 0, 1), ("p", 0, 1), ("m", 0, 10), ("mmax", 0, 10), ("n", 1, 16), ("N", 1, 16),
                           ("w", 1, 8), ("d", 1, 6), ("mstd", 0, math.inf), ("inc", 0, 1)):  # fmt: skip
        if not low <= given.get(key, low) <= high:
            raise InputError(f"{text!r}: {key} must be in {low:g}..{high:g}, not {given[key]:g}")
        if key in "nNwd" and not given.get(key, 1.0).is_integer():
            raise InputError(f"{text!r}: {key} must be a whole number, not {given[key]:g}")
    if text.startswith("RandAugment") and "M" not in given:
        raise InputError(f"{text!r} needs a magnitude from 0 to 1, as in RandAugment_N2_M0.5")
    return make(given)


def _pycls_rand(given: dict[str, float]) -> Policy:
    return RandAugment(INCREASING, int(given.get("N", 2)), Strength(given["M"]), given.get("P", 1.0))


def _std(given: dict[str, float], default: float) -> float:
    """Of magnitudes of 1; above 100 timm means a uniform distribution."""
    std = given.get("mstd", default)
    return math.inf if std > 100 else std / 10


def _timm_rand(given: dict[str, float]) -> Policy:
    strength = Strength(given.get("m", 10) / 10, _std(given, 0.0), given.get("mmax", 10) / 10)
    return RandAugment(INCREASING if given.get("inc") else ORIGINAL, int(given.get("n", 2)), strength, given.get("p", 0.5))


def _timm_auto(given: dict[str, float]) -> Policy:
    return AutoAugment(V0, _std(given, 0.0))


def _timm_augmix(given: dict[str, float]) -> Policy:
    strength = Strength(given.get("m", 3) / 10, _std(given, math.inf))
    return AugMix(strength, int(given.get("w", 3)), int(given.get("d", 0)))
