"""The cosine similarity ``z = s cos(w, x)``, and the heads that are nothing but that."""

from typing import Annotated

import torch
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.ops.spec import ScoreSpec
from pycls.heads.parts import FeatureInput, Similarity, Target
from pycls.heads.scale import Learning, Scale
from pycls.ranges import COUNT, NOT_NEGATIVE, POSITIVE
from pycls.registry import HEADS, SIMILARITIES


@SIMILARITIES.register("cosine")
class Cosine(Similarity):
    """Scaled cosine with each prototype: ``z_j = s w_j . x / (|w_j| |x|)``, the largest of a class's centres.

    A zero feature or prototype has cosine 0 with everything, and no gradient.

    Args:
        in_features: D.
        num_classes: K.
        scale: s > 0, or where it starts; 0 for AdaCos's sqrt(2) ln(K - 1).
        learning: s is fixed, learned as it is, or softplus(s_) + 1 of a learned s_ that starts at 0.
        num_centers: prototypes a class.

    Raises:
        ValueError: if scale is negative or num_centers not positive.
    """

    name = "cosine"
    domain = "cosine"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: Annotated[float, NOT_NEGATIVE] = 30.0,
        learning: Learning = "fixed",
        num_centers: Annotated[int, COUNT] = 1,
    ) -> None:
        super().__init__()
        # rows of about unit length: the step that a learning rate makes turns them by an angle that does not hang on D
        self.weight = nn.Parameter(torch.empty(num_classes * num_centers, in_features).normal_(0.0, in_features**-0.5))
        self.spec = ScoreSpec("cosine", num_centers=num_centers)
        self.scaling = Scale(scale, learning, num_classes)

    @property
    def scale(self) -> Tensor | float:
        """s: a number, or a 0-dim tensor if it is learned."""
        value: Tensor | float = self.scaling()
        return value

    def inputs(self, features: Tensor) -> FeatureInput:
        """s x / |x|."""
        return FeatureInput(features, target_norm=self.scale)

    def margin_map(self, target: Target) -> tuple[Tensor | float, float]:
        """s cos."""
        return self.scale, 0.0


@HEADS.register("normface")
def normface(in_features: int, num_classes: int, scale: Annotated[float, NOT_NEGATIVE] = 10.0) -> Head:
    """NormFace: a cosine with a learned scale (Wang et al., ACM MM 2017, equation 6).

    Args:
        in_features: D.
        num_classes: K.
        scale: where the learned s starts.
    """
    return Head(Cosine(in_features, num_classes, scale, "learned"), None, CrossEntropy())


@HEADS.register("cosloss")
def cosloss(in_features: int, num_classes: int) -> Head:
    """CosLoss: a cosine with scale ``softplus(s_) + 1``, s_ learned from 0 (Kobayashi, CVPR 2021, the baseline's head).

    Args:
        in_features: D.
        num_classes: K.
    """
    return Head(Cosine(in_features, num_classes, learning="softplus"), None, CrossEntropy())


@HEADS.register("coco")
def coco(in_features: int, num_classes: int, alpha: Annotated[float, POSITIVE] = 6.25) -> Head:
    """COCO: congenerous cosine loss, ``alpha cos`` with prototypes for centroids (Liu et al., 2017, equation 6).

    Args:
        in_features: D.
        num_classes: K.
        alpha: the norm that features are given.
    """
    return Head(Cosine(in_features, num_classes, alpha), None, CrossEntropy())
