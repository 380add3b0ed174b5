"""What distinguishes one similarity from another in the pass over the prototypes (``gram.py``)."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Elements of W in an automatic chunk: 4 MB of float32, which stays in the cache between the chunk's passes."""

LOGITS_ELEMENTS = 1 << 22
"""Logits of an automatic chunk at the most, for large batches."""

TINY = 1e-24
"""Squared norm under which a vector counts as zero: its cosine with anything is 0, and so is the gradient."""


_HERE = nullcontext()


def float_products(x: Tensor) -> AbstractContextManager[object]:
    """Where the products of a head with x are made: outside of autocast. To ask is quicker than to leave what was never
    entered."""
    kind = "cpu" if x.is_cpu else x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _HERE


class Link:
    """u -> z elementwise; this one is the identity. ``scale`` is a 0-dim tensor that multiplies the result, or None."""

    @property
    def identity(self) -> bool:
        """Whether z is u."""
        return type(self) is Link

    @property
    def compiled(self) -> tuple[int, float] | None:
        """Its number in rows.c and the constant that it has there; None for a link that is not there."""
        return (0, 0.0) if self.identity else None

    def apply_(self, u: Tensor, scale: Tensor | None) -> Tensor:
        """The logits of measures ``u``; may overwrite ``u``."""
        return u

    def pull_(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        """Gradient by u from the gradient by z, given z; may overwrite ``grad``."""
        return grad

    def measure(self, z: Tensor, scale: Tensor | None) -> Tensor:
        """u from z, for links used with cosines."""
        return z


@dataclass(frozen=True)
class Form:
    """Which member of the family a similarity is.

    Attributes:
        kind: ``"product"`` u = p, ``"cosine"`` u = p / |w|, ``"distance"`` u = constant - rate |x - w|^2.
        rate: of a distance; negative for a measure that grows with it.
        constant: of a distance.
        link: the function u -> z.
        num_centers: prototypes a class; the measure of a class is the largest of its prototypes'.
    """

    kind: Literal["product", "cosine", "distance"] = "product"
    rate: float = 0.0
    constant: float = 0.0
    link: Link = field(default_factory=Link)
    num_centers: int = 1
