"""The cosine similarity ``z = s cos(w, x)``."""

import torch
from torch import Tensor, nn

from pycls.heads.gram import Form
from pycls.heads.parts import Queries, Similarity, unit
from pycls.registry import SIMILARITIES


@SIMILARITIES.register("cosine")
class Cosine(Similarity):
    """Scaled cosine with each prototype: ``z_j = s w_j . x / (|w_j| |x|)``.

    A zero feature or prototype has cosine 0 with everything, and no gradient.

    Args:
        in_features: D.
        num_classes: K.
        scale: s > 0.

    Raises:
        ValueError: if scale is not positive.
    """

    name = "cosine"
    domain = "cosine"
    scale: Tensor

    def __init__(self, in_features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"the scale of a cosine is positive, not {scale}")
        # rows of about unit length: the step that a learning rate makes turns them by an angle that does not hang on D
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).normal_(0.0, in_features**-0.5))
        self.form = Form(columns="unit")
        self.register_buffer("scale", torch.tensor(float(scale)))

    def queries(self, features: Tensor) -> Queries:
        """s x / |x|."""
        return Queries(unit(features)[0] * self.scale)

    def to_margin_domain(self, u: Tensor, queries: Queries, squared_norm: Tensor | None) -> Tensor:
        """u / s."""
        return u / self.scale

    def from_margin_domain(self, value: Tensor, queries: Queries, squared_norm: Tensor | None) -> Tensor:
        """s cos."""
        return value * self.scale
