"""Multiplicative angular margins: L-Softmax (Liu et al., ICML 2016) and SphereFace (Liu et al., CVPR 2017)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import Margin, Similarity, Target
from pycls.heads.snapshot import snapshot
from pycls.ranges import NOT_NEGATIVE, PART, Range
from pycls.registry import HEADS, MARGINS, SIMILARITIES


@SIMILARITIES.register("projection")
class Projection(Similarity):
    """The features' length along each prototype: ``z_j = |x| cos(w_j, x)`` (SphereFace, equation 5, |w_j| = 1, no bias).

    Args:
        in_features: D.
        num_classes: K.
    """

    name = "projection"
    domain = "cosine"
    needs_feature_norm = True

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).normal_(0.0, in_features**-0.5))
        self.spec = ScoreSpec("cosine")

    def margin_map(self, target: Target) -> tuple[Tensor, float]:
        """|x| cos."""
        assert target.feature_norm is not None
        return target.feature_norm, 0.0


@MARGINS.register("multi_angle")
class MultiAngle(Margin):
    """``(lambda cos + psi(theta)) / (1 + lambda)`` for the target, with an annealed lambda.

    ``psi = (-1)^k cos(m theta) - 2k`` for theta in [k pi / m, (k + 1) pi / m] (L-Softmax, equation 6). cos(m theta) is the
    Chebyshev polynomial of the cosine, so that values and gradients are exact and finite everywhere.

    lambda after t training passes is ``max(lambda_min, lambda_base (1 + lambda_gamma t)^-lambda_power)``, or with
    ``lambda_decay`` the geometric ``max(lambda_min, lambda_base lambda_decay^t)``. t is a buffer: it is saved and resumed.

    Args:
        margin: m, 1 to 4.
        lambda_base: lambda before training; 0 for none at all.
        lambda_gamma: of the schedule.
        lambda_power: of the schedule.
        lambda_min: where lambda stops.
        lambda_decay: factor a training pass of the geometric schedule, in (0, 1); 0 for the other one.

    Raises:
        ValueError: if margin is not 1, 2, 3 or 4, or a number of the schedule is out of its range.
    """

    name = "multi_angle"
    domain = "cosine"
    passes: Tensor

    def __init__(
        self,
        margin: Annotated[int, Range(1, 4)] = 4,
        lambda_base: Annotated[float, NOT_NEGATIVE] = 1000.0,
        lambda_gamma: Annotated[float, NOT_NEGATIVE] = 2.5e-5,
        lambda_power: Annotated[float, NOT_NEGATIVE] = 35.0,
        lambda_min: Annotated[float, NOT_NEGATIVE] = 0.0,
        lambda_decay: Annotated[float, PART] = 0.0,
    ) -> None:
        super().__init__()
        if margin % 1:
            raise ValueError(f"margin: expected a whole number, found {margin}")
        self.value, self.base, self.least = margin, lambda_base, lambda_min
        self.gamma, self.power, self.decay = lambda_gamma, lambda_power, lambda_decay
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def annealed(self, dtype: torch.dtype) -> Tensor | float:
        """lambda now: a number, or 0-dim where to read the counter would wait for a device or break a graph."""
        if self.base == 0:
            return 0.0
        if self.passes.is_cpu and not torch.compiler.is_compiling():
            passes = int(self.passes)
            known = passes * math.log(self.decay) if self.decay else -self.power * math.log1p(self.gamma * passes)
            return max(self.base * math.exp(known), self.least)
        t = snapshot(self.passes).to(dtype)
        shrunk = t * math.log(self.decay) if self.decay else -self.power * torch.log1p(self.gamma * t)
        return (self.base * shrunk.exp()).clamp(min=self.least)

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The blend of cos and psi."""
        (harder, slope), blend = psi(value, self.value), self.annealed(value.dtype)
        share = blend / (1 + blend)
        return torch.lerp(harder, value, share), slope * (1 - share) + share

    def advance(self) -> None:
        """One more training pass."""
        self.passes.add_(1)

    def extra_repr(self) -> str:
        """margin and schedule."""
        return f"margin={self.value}, lambda from {self.base} to {self.least}"


def psi(cos: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """``(-1)^k cos(m theta) - 2k``, falling from 1 at theta = 0 to 1 - 2m at pi, of the cosine, exact; and its slope
    ``(-1)^k m U_{m-1}(cos)``, U the Chebyshev polynomial of the second kind."""
    if m == 1:
        return cos.clone(), torch.ones_like(cos)
    square = cos.square()
    if m == 2:
        value, slope = 2 * square - 1, 4 * cos
    elif m == 3:
        value, slope = (4 * square - 3).mul_(cos), 12 * square - 3
    else:
        eight = 8 * square
        value, slope = (eight - 8).mul_(square).add_(1), (4 * eight - 16).mul_(cos)
    # k is the number of ends cos(j pi / m) that the angle has passed; there value and slope go on, so rounding may take either
    k = torch.bucketize(-cos, cos.new_tensor([-math.cos(j * math.pi / m) for j in range(1, m)]))
    sign, shift = cos.new_tensor([[(-1.0) ** j for j in range(m)], [-2.0 * j for j in range(m)]]).index_select(1, k).unbind(0)
    return torch.addcmul(shift, value, sign), slope.mul_(sign)


@HEADS.register("lsoftmax")
def lsoftmax(
    in_features: int,
    num_classes: int,
    margin: Annotated[int, Range(1, 4)] = 4,
    lambda_base: Annotated[float, NOT_NEGATIVE] = 1000.0,
    lambda_gamma: Annotated[float, NOT_NEGATIVE] = 2.5e-5,
    lambda_power: Annotated[float, NOT_NEGATIVE] = 35.0,
    lambda_min: Annotated[float, NOT_NEGATIVE] = 0.0,
    lambda_decay: Annotated[float, PART] = 0.0,
) -> Head:
    """L-Softmax: ``|w_y| |x| psi(theta)`` for the target (Liu, Wen, Yu, Yang, ICML 2016, equation 4).

    The schedule's defaults are the authors' for MNIST; for CIFAR-10 they take m 2, gamma 2e-5, power 45, and end at 5 to 10
    on hard data. The widespread PyTorch port's is base 100, decay 0.99.

    Args:
        in_features: D.
        num_classes: K.
        margin: m, 1 to 4; 1 is the plain softmax without bias.
        lambda_base: lambda before training; 0 for no annealing.
        lambda_gamma: lambda = base (1 + gamma t)^-power after t steps.
        lambda_power: see lambda_gamma.
        lambda_min: where lambda stops.
        lambda_decay: lambda = base decay^t instead; 0 for the other one.
    """
    schedule = (lambda_base, lambda_gamma, lambda_power, lambda_min, lambda_decay)
    return Head(Linear(in_features, num_classes, bias=False), MultiAngle(margin, *schedule), CrossEntropy())


@HEADS.register("sphereface")
def sphereface(
    in_features: int,
    num_classes: int,
    margin: Annotated[int, Range(1, 4)] = 4,
    lambda_base: Annotated[float, NOT_NEGATIVE] = 1000.0,
    lambda_gamma: Annotated[float, NOT_NEGATIVE] = 0.12,
    lambda_power: Annotated[float, NOT_NEGATIVE] = 1.0,
    lambda_min: Annotated[float, NOT_NEGATIVE] = 5.0,
    lambda_decay: Annotated[float, PART] = 0.0,
) -> Head:
    """SphereFace / A-Softmax: ``|x| psi(theta)`` for the target, ``|x| cos`` else (Liu et al., CVPR 2017, equation 7).

    Args:
        in_features: D.
        num_classes: K.
        margin: m, 1 to 4.
        lambda_base: lambda before training; 0 for no annealing.
        lambda_gamma: lambda = base (1 + gamma t)^-power after t steps.
        lambda_power: see lambda_gamma.
        lambda_min: where lambda stops.
        lambda_decay: lambda = base decay^t instead; 0 for the other one.
    """
    schedule = (lambda_base, lambda_gamma, lambda_power, lambda_min, lambda_decay)
    return Head(Projection(in_features, num_classes), MultiAngle(margin, *schedule), CrossEntropy())
