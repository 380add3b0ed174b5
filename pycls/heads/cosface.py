"""CosFace: the additive cosine margin (Wang et al., CVPR 2018), also LMCL and AM-Softmax."""

from typing import Annotated

import torch
from torch import Tensor

from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.parts import Margin, Target
from pycls.ranges import NOT_NEGATIVE, Range
from pycls.registry import HEADS, MARGINS


@MARGINS.register("additive_cosine")
class AdditiveCosine(Margin):
    """``cos - m`` for the target (CosFace, equation 4).

    Args:
        margin: m, in [0, 2].

    Raises:
        ValueError: if margin is outside [0, 2], the width of a cosine's range.
    """

    name = "additive_cosine"
    domain = "cosine"

    def __init__(self, margin: Annotated[float, Range(0, 2)] = 0.35) -> None:
        super().__init__()
        self.value = margin

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """cos - m."""
        return value - self.value, torch.ones_like(value)

    def extra_repr(self) -> str:
        """margin."""
        return f"margin={self.value}"


@HEADS.register("cosface")
def cosface(
    in_features: int,
    num_classes: int,
    scale: Annotated[float, NOT_NEGATIVE] = 64.0,
    margin: Annotated[float, Range(0, 2)] = 0.35,
) -> Head:
    """CosFace / LMCL: ``s (cos_y - m)`` against ``s cos_j`` (Wang et al., CVPR 2018, equation 4).

    The paper takes s 64 and m 0.35 for faces; small sets with few classes want less (s 7, m 0.2 on 2-D MNIST features).

    Args:
        in_features: D.
        num_classes: K.
        scale: s, the norm that features are given.
        margin: m, subtracted from the target's cosine in training.
    """
    return Head(Cosine(in_features, num_classes, scale), AdditiveCosine(margin), CrossEntropy())
