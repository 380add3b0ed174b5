"""What distinguishes one similarity from another in the pass over the prototypes (``gram.py``)."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Elements of W in an automatic chunk: 4 MB of float32, which stays in the cache between the chunk's passes."""

LOGITS_ELEMENTS = 1 << 22
"""Logits of an automatic chunk at the most, for large batches."""

TINY = 1e-24
"""Squared norm under which a vector counts as zero: its cosine with anything is 0, and so is the gradient."""


class Link:
    """u -> z elementwise; this one is the identity. ``scale`` is a 0-dim tensor that multiplies the result, or None."""

    def apply_(self, u: Tensor, scale: Tensor | None) -> Tensor:
        """The logits of measures ``u``; may overwrite ``u``."""
        return u

    def pull_(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        """Gradient by u from the gradient by z, given z; may overwrite ``grad``."""
        return grad

    def measure(self, z: Tensor, scale: Tensor | None) -> Tensor:
        """u from z, for links used with ``columns="unit"``."""
        return z


@dataclass(frozen=True)
class Form:
    """Which member of the family a similarity is.

    Attributes:
        columns: ``"plain"`` u = p, ``"unit"`` u = p / |w|, ``"square"`` u = p + square |w|^2.
        square: the coefficient c of ``"square"``.
        link: the function u -> z.
        num_centers: prototypes a class; the measure of a class is the largest of its prototypes'.
    """

    columns: Literal["plain", "unit", "square"] = "plain"
    square: float = 0.0
    link: Link = field(default_factory=Link)
    num_centers: int = 1
