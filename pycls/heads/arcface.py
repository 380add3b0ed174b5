"""Additive angular margins: ArcFace, its sub-centre form, and the combined margin (Deng et al., CVPR 2019; ECCV 2020)."""

import math
from typing import Annotated

import torch
from torch import Tensor

from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.parts import Margin, Target
from pycls.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Range
from pycls.registry import HEADS, MARGINS

ANGLE = Range(0, math.pi, open_right=True)


def turned(cos: Tensor, m: float, easy: bool) -> tuple[Tensor, Tensor]:
    """cos(theta + m), continued, and its slope by cos.

    Where rounding decides what is left of the sine, the slope stops growing: it has no bound.
    """
    sine = (1 - cos.square()).clamp_(min=0).sqrt_()
    value = (cos * math.cos(m)).sub_(sine, alpha=math.sin(m))
    slope = (cos / sine.clamp_(min=2 * torch.finfo(cos.dtype).eps ** 0.5)).mul_(math.sin(m)).add_(math.cos(m))
    outside = cos <= 0 if easy else cos < math.cos(math.pi - m)
    return torch.where(outside, cos if easy else cos - m * math.sin(m), value), slope.masked_fill_(outside, 1.0)


@MARGINS.register("additive_angle")
class AdditiveAngle(Margin):
    """``cos(theta + m)`` for the target (ArcFace, equation 3).

    Past ``theta = pi - m``, where that would rise again, it is ``cos - m sin m``, as in the authors' code. The gradient is
    the exact one: ``cos(theta + m) = cos cos m - sin sin m``.

    Args:
        margin: m in radians, in [0, pi).
        easy_margin: ``cos(theta + m)`` where cos > 0 only, and the plain cosine elsewhere.

    Raises:
        ValueError: if margin is outside [0, pi).
    """

    name = "additive_angle"
    domain = "cosine"

    def __init__(self, margin: Annotated[float, ANGLE] = 0.5, easy_margin: bool = False) -> None:
        super().__init__()
        self.value, self.easy_margin = margin, easy_margin

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """cos(theta + m), continued."""
        return turned(value, self.value, self.easy_margin)

    def extra_repr(self) -> str:
        """margin, easy_margin."""
        return f"margin={self.value}, easy_margin={self.easy_margin}"


@MARGINS.register("combined")
class Combined(Margin):
    """``cos(m1 theta + m2) - m3`` for the target (ArcFace, equation 4): SphereFace's, ArcFace's and CosFace's in one.

    With m1 = 1 it is continued past pi as :class:`AdditiveAngle` is. With another m1 it is continued as L-Softmax's psi
    is: ``(-1)^k cos(m1 theta + m2) - 2k - m3`` where ``m1 theta + m2`` is in [k pi, (k + 1) pi], which keeps it falling.

    Args:
        m1: factor of the angle, > 0.
        m2: added to the angle, in radians, in [0, pi).
        m3: subtracted from the cosine.

    Raises:
        ValueError: if m1 is not positive, m2 outside [0, pi) or m3 negative.
    """

    name = "combined"
    domain = "cosine"

    def __init__(
        self,
        m1: Annotated[float, POSITIVE] = 1.0,
        m2: Annotated[float, ANGLE] = 0.0,
        m3: Annotated[float, NOT_NEGATIVE] = 0.0,
    ) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = m1, m2, m3

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """cos(m1 theta + m2) - m3, continued."""
        if self.m1 == 1:
            moved, slope = turned(value, self.m2, easy=False)
            return moved.sub_(self.m3), slope
        # at theta 0 and pi, where rounding decides, the angle has no slope
        square, least = 1 - value.square(), 4 * torch.finfo(value.dtype).eps
        inner = square > least
        angle = torch.where(inner, torch.where(inner, value, 0).acos(), torch.where(value > 0, 0.0, math.pi))
        angle = self.m1 * angle + self.m2
        turns = (angle / math.pi).floor()
        sign = 1 - 2 * turns.remainder(2)
        slope = torch.where(inner, sign * angle.sin() * self.m1 * torch.where(inner, square, 1).rsqrt(), 0)
        return sign * angle.cos() - 2 * turns - self.m3, slope

    def extra_repr(self) -> str:
        """m1, m2, m3."""
        return f"m1={self.m1}, m2={self.m2}, m3={self.m3}"


@HEADS.register("arcface")
def arcface(
    in_features: int,
    num_classes: int,
    scale: Annotated[float, NOT_NEGATIVE] = 64.0,
    margin: Annotated[float, ANGLE] = 0.5,
    easy_margin: bool = False,
) -> Head:
    """ArcFace: ``s cos(theta_y + m)`` against ``s cos theta_j`` (Deng et al., CVPR 2019, equation 3).

    Args:
        in_features: D.
        num_classes: K.
        scale: s, the norm that features are given; 0 for AdaCos's sqrt(2) ln(K - 1).
        margin: m in radians.
        easy_margin: the margin where cos > 0 only.
    """
    return Head(Cosine(in_features, num_classes, scale), AdditiveAngle(margin, easy_margin), CrossEntropy())


@HEADS.register("combined")
def combined(
    in_features: int,
    num_classes: int,
    scale: Annotated[float, NOT_NEGATIVE] = 64.0,
    m1: Annotated[float, POSITIVE] = 1.0,
    m2: Annotated[float, ANGLE] = 0.0,
    m3: Annotated[float, NOT_NEGATIVE] = 0.0,
) -> Head:
    """The combined margin: ``s (cos(m1 theta_y + m2) - m3)`` (Deng et al., CVPR 2019, equation 4).

    Args:
        in_features: D.
        num_classes: K.
        scale: s, the norm that features are given; 0 for AdaCos's sqrt(2) ln(K - 1).
        m1: factor of the angle.
        m2: added to the angle, in radians.
        m3: subtracted from the cosine.
    """
    return Head(Cosine(in_features, num_classes, scale), Combined(m1, m2, m3), CrossEntropy())


@HEADS.register("subcenter_arcface")
def subcenter_arcface(
    in_features: int,
    num_classes: int,
    scale: Annotated[float, NOT_NEGATIVE] = 64.0,
    margin: Annotated[float, ANGLE] = 0.5,
    num_centers: Annotated[int, COUNT] = 3,
) -> Head:
    """Sub-centre ArcFace: the nearest of each class's centres counts (Deng et al., ECCV 2020, equation 2).

    Args:
        in_features: D.
        num_classes: K.
        scale: s, the norm that features are given; 0 for AdaCos's sqrt(2) ln(K - 1).
        margin: m in radians.
        num_centers: C; the prototypes k C .. k C + C - 1 are class k's.
    """
    similarity = Cosine(in_features, num_classes, scale, num_centers=num_centers)
    return Head(similarity, AdditiveAngle(margin), CrossEntropy())
