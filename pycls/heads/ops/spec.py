"""What distinguishes one similarity from another in the pass over the prototypes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

TINY = 1e-24
"""Squared norm under which a vector counts as zero: its cosine with anything is 0, and so is the gradient."""


class LogitTransform:
    """Score u -> logit z, elementwise; this one is the identity.

    A transform may be multiplied by a learned ``scale``, a 0-dim tensor (``Similarity.logit_scale``): z is proportional to it.

    Attributes:
        kernel_id: number of the transform in the compiled kernels, declared by the class that has the methods: a subclass
            does not inherit it. None for one that they do not have.
        kernel_constant: the number that it has there.
    """

    kernel_id: ClassVar[int | None] = 0
    kernel_constant: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether z is u."""
        return type(self) is LogitTransform

    @property
    def kernel(self) -> int | None:
        """``kernel_id``, if this very class declares it."""
        number: int | None = vars(type(self)).get("kernel_id")
        return number

    def forward_(self, score: Tensor, scale: Tensor | None) -> Tensor:
        """The logits; may overwrite ``score``."""
        return score

    def backward_(self, grad: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
        """Gradient by the scores from that by the logits, given the logits; may overwrite ``grad``."""
        return grad

    def score_of(self, logits: Tensor, scale: Tensor | None) -> Tensor:
        """The scores behind the logits; needed of a transform of cosines."""
        return logits


@dataclass(frozen=True)
class ScoreSpec:
    """Which member of the family a similarity is.

    Attributes:
        kind: score ``"product"`` u = x . w, ``"cosine"`` u = x . w / |w|, ``"distance"`` u = constant - rate |x - w|^2.
        rate: of a distance; negative for a score that grows with it.
        constant: of a distance.
        transform: score -> logit.
        num_centers: prototypes a class, in adjacent rows; the score of a class is the largest of its prototypes'.
    """

    kind: Literal["product", "cosine", "distance"] = "product"
    rate: float = 0.0
    constant: float = 0.0
    transform: LogitTransform = field(default_factory=LogitTransform)
    num_centers: int = 1

    @property
    def product_factor(self) -> float:
        """The derivative of a score by the product x . w, but for the division by |w|."""
        return 2 * self.rate if self.kind == "distance" else 1.0
