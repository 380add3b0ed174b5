"""Augmentation policies: which operations, how strong, on which sample. Nothing here looks at a pixel.

A policy plans, for the samples of a batch, a few layers of operations (``pixel_ops.py``), each a pure function of (seed, epoch,
draw); applying a plan is the same for all of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pycls.data import rng
from pycls.data.augment.pixel_ops import apply

_LAYERS, _CHAINS, _JITTER = 400, 800, 900  # the first of the streams: eight for each layer, one for each chain
_WHICH, _WHETHER, _SIGN, _STRENGTH, _NORMAL = range(5)


class Range(NamedTuple):
    """An operation and its values: ``low`` at magnitude 0, ``high`` at 1.

    Attributes:
        operation: its name in ``OPERATIONS``.
        low: at magnitude 0.
        high: at magnitude 1.
        signed: whether it is negated half of the time.
        offset: added afterwards.
        whole: whether the fraction is cut off before that.
    """

    operation: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    offset: float = 0.0
    whole: bool = False

    def value(self, magnitude: float, negate: bool) -> float:
        """For a magnitude in 0..1."""
        value = self.low + magnitude * (self.high - self.low)
        value = float(math.trunc(value + math.copysign(1e-9, value))) if self.whole else value
        return self.offset + (-value if self.signed and negate else value)


_GEOMETRY = (Range("rotate", 0, 30, True), Range("shear_x", 0, 0.3, True), Range("shear_y", 0, 0.3, True),
             Range("translate_x", 0, 0.45, True), Range("translate_y", 0, 0.45, True))  # fmt: skip
_ENHANCE = ("color", "contrast", "brightness", "sharpness")
INCREASING = (
    Range("autocontrast"), Range("equalize"), Range("invert"), Range("posterize", 0, -4, offset=4, whole=True),
    Range("solarize", 0, -256, offset=256), Range("solarize_add", 0, 110, whole=True),
    *(Range(name, 0, 0.9, True, offset=1) for name in _ENHANCE), *_GEOMETRY,
)  # fmt: skip
"""pycls's operations, and timm's ``inc1``: magnitude 0 leaves the image as it is, if the operation can."""
ORIGINAL = (
    Range("autocontrast"), Range("equalize"), Range("invert"), Range("posterize", 0, 4, whole=True),
    Range("solarize", 0, 256, whole=True), Range("solarize_add", 0, 110, whole=True),
    *(Range(name, 0.1, 1.9) for name in _ENHANCE), *_GEOMETRY,
)  # fmt: skip
"""Those of EfficientNet's code: posterize and solarize grow weaker with the magnitude."""
WIDE = (
    Range("identity"), Range("shear_x", 0, 0.99, True), Range("shear_y", 0, 0.99, True), Range("shift_x", 0, 32, True),
    Range("shift_y", 0, 32, True), Range("rotate", 0, 135, True),
    *(Range(name, 0, 0.99, True, offset=1) for name in _ENHANCE), Range("posterize", 0, -6, offset=8, whole=True),
    Range("solarize", 0, -255, offset=255), Range("autocontrast"), Range("equalize"),
)  # fmt: skip
"""TrivialAugment's wide space (table 5 of the paper)."""
MIXABLE = tuple(r for r in INCREASING if r.operation not in ("invert", "solarize_add"))
"""AugMix's, as timm has them: the paper's thirteen, the last four of which it leaves out where it tests on corruptions."""


class Samples(NamedTuple):
    """What a plan is a function of.

    Attributes:
        seed: of the run.
        epoch: 0-based.
        draws: int64 ``[n]`` on the CPU.
    """

    seed: int
    epoch: int
    draws: Tensor

    def uniform(self, stream: int) -> Tensor:
        """In [0, 1), float64 ``[n]``."""
        return rng.uniform(self.seed, self.epoch, self.draws, stream, torch.float64)

    def normal(self, stream: int) -> Tensor:
        """Standard normal, float64 ``[n]`` (Box and Muller); takes ``stream`` and the next."""
        radius = (-2 * torch.log1p(-self.uniform(stream))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(stream + 1))


class Policy(ABC):
    """What is done to the pixels of a batch."""

    @abstractmethod
    def __call__(self, pixels: Tensor, samples: Samples) -> Tensor:
        """uint8 ``[n, C, H, W]`` -> the same; not in place."""


@dataclass(frozen=True)
class Strength:
    """How strong an operation is, in magnitudes of 0..1.

    Attributes:
        magnitude: the mean, or the largest where ``std`` is infinite.
        std: of a normal distribution about it; 0 for none, infinite for uniform from 0 on.
        most: what it is clipped to.
    """

    magnitude: float
    std: float = 0.0
    most: float = 1.0

    def sample(self, samples: Samples, stream: int) -> Tensor:
        """float64 ``[n]``; takes three streams."""
        if math.isinf(self.std):
            return samples.uniform(stream) * self.magnitude
        values = torch.full((len(samples.draws),), self.magnitude, dtype=torch.float64)
        return (values + self.std * samples.normal(stream)).clamp(0, self.most) if self.std else values


def _layer(pixels: Tensor, ranges: Sequence[Range], magnitudes: Tensor, samples: Samples, layer: int) -> Tensor:
    """Applies one operation of its range to each image."""
    negate = (samples.uniform(_LAYERS + 8 * layer + _SIGN) < 0.5).tolist()
    values = [r.value(m, n) for r, m, n in zip(ranges, magnitudes.tolist(), negate, strict=True)]
    return apply(pixels, [r.operation for r in ranges], torch.tensor(values, dtype=torch.float32))


def _choose(space: Sequence[Range], samples: Samples, layer: int) -> list[Range]:
    stream = _LAYERS + 8 * layer + _WHICH
    return [space[i] for i in rng.integers(samples.seed, samples.epoch, samples.draws, stream, len(space)).tolist()]


_NOTHING = Range("identity")


@dataclass(frozen=True)
class RandAugment(Policy):
    """Some operations of a space in a row, all of the same strength (Cubuk et al., NeurIPS 2020, section 3).

    Also TrivialAugment (Mueller and Hutter, ICCV 2021): one operation of uniform strength.

    Attributes:
        space: of the operations.
        layers: how many in a row.
        strength: of each.
        prob: that one is applied.
    """

    space: tuple[Range, ...]
    layers: int
    strength: Strength
    prob: float = 1.0

    def __call__(self, pixels: Tensor, samples: Samples) -> Tensor:
        for layer in range(self.layers):
            streams = _LAYERS + 8 * layer
            kept = (samples.uniform(streams + _WHETHER) < self.prob).tolist()
            chosen = [r if keep else _NOTHING for r, keep in zip(_choose(self.space, samples, layer), kept, strict=True)]
            pixels = _layer(pixels, chosen, self.strength.sample(samples, streams + _STRENGTH), samples, layer)
        return pixels


@dataclass(frozen=True)
class AutoAugment(Policy):
    """Two operations in a row out of a list found by search (Cubuk et al., CVPR 2019).

    Attributes:
        policy: pairs of (operation, probability, magnitude in 0..1).
        std: of the magnitude.
    """

    policy: tuple[tuple[tuple[str, float, float], ...], ...]
    std: float = 0.0

    def __call__(self, pixels: Tensor, samples: Samples) -> Tensor:
        space = {r.operation: r for r in ORIGINAL}
        which = rng.integers(samples.seed, samples.epoch, samples.draws, _LAYERS + 8 * 2, len(self.policy)).tolist()
        for layer in range(2):
            streams = _LAYERS + 8 * layer
            steps = [self.policy[i][layer] for i in which]
            kept = samples.uniform(streams + _WHETHER) < torch.tensor([prob for _, prob, _ in steps], dtype=torch.float64)
            chosen = [space[name] if keep else _NOTHING for (name, _, _), keep in zip(steps, kept.tolist(), strict=True)]
            magnitudes = torch.tensor([magnitude for _, _, magnitude in steps], dtype=torch.float64)
            if self.std:
                magnitudes = (magnitudes + self.std * samples.normal(streams + _STRENGTH)).clamp(0, 1)
            pixels = _layer(pixels, chosen, magnitudes, samples, layer)
        return pixels


@dataclass(frozen=True)
class AugMix(Policy):
    """Chains of operations, mixed with each other and with the image (Hendrycks et al., ICLR 2020, algorithm 1, alpha 1).

    Attributes:
        strength: of each operation.
        width: number of chains.
        depth: operations in a chain; 0 for 1 to 3 at random.
    """

    strength: Strength
    width: int = 3
    depth: int = 0

    def __call__(self, pixels: Tensor, samples: Samples) -> Tensor:
        device = pixels.device
        shares = torch.stack([-torch.log1p(-samples.uniform(_CHAINS + chain)) for chain in range(self.width)])
        shares = (shares / shares.sum(dim=0)).float().to(device, non_blocking=True)  # Dirichlet(1, ..., 1)
        keep = samples.uniform(_CHAINS + 99).float().to(device, non_blocking=True)[:, None, None, None]  # Beta(1, 1)
        mixed = torch.zeros_like(pixels, dtype=torch.float32)
        longest = self.depth or 3
        for chain in range(self.width):
            made = pixels
            depths = (samples.uniform(_CHAINS + 50 + chain) * 3).long() + 1
            for place in range(longest):
                layer = chain * longest + place
                there = (depths > place).tolist() if not self.depth else [True] * len(depths)
                chosen = [r if on else _NOTHING for r, on in zip(_choose(MIXABLE, samples, layer), there, strict=True)]
                made = _layer(made, chosen, self.strength.sample(samples, _LAYERS + 8 * layer + _STRENGTH), samples, layer)
            mixed += shares[chain][:, None, None, None] * made
        return torch.lerp(mixed, pixels.float(), keep).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class ColorJitter(Policy):
    """Brightness, contrast and saturation, each times its own factor in 1 - jitter .. 1 + jitter, in random order.

    Attributes:
        jitter: from 0 on.
    """

    jitter: float

    def __call__(self, pixels: Tensor, samples: Samples) -> Tensor:
        names = ("brightness", "contrast", "color")
        least = max(0.0, 1 - self.jitter)
        factors = torch.stack([least + (1 + self.jitter - least) * samples.uniform(_JITTER + k) for k in range(3)])
        order = torch.stack([samples.uniform(_JITTER + 3 + k) for k in range(3)]).argsort(dim=0)
        for turn in order:
            values = factors.gather(0, turn[None])[0].float()
            pixels = apply(pixels, [names[k] for k in turn.tolist()], values)
        return pixels
