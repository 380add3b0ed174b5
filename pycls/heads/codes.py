"""What the compiled loss of a head (``tail.c``) is told of the head's parts, and which parts it may believe it of."""

import functools
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor, nn


class TargetKind(IntEnum):
    """How the target's measure u follows from its cosine or squared distance: ``enum domain`` of tail.c."""

    NONE = 0
    OVER_LENGTH = 1
    """u = length cos, the length that features are given."""
    OVER_FEATURE = 2
    """u = |x| cos."""
    OVER_BOTH = 3
    """u = |x| |w| cos."""
    DISTANCE = 4
    """u = constant - rate (distance + log-determinant)."""


class MarginKind(IntEnum):
    """``enum margin`` of tail.c."""

    NONE = 0
    LESS_COSINE = 1
    """cos - a, or less a number for each class."""
    MORE_ANGLE = 2
    """cos(theta + a), continued; b other than 0 for the easy margin."""
    COMBINED = 3
    """cos(a theta + b) - c, continued."""
    MULTI_ANGLE = 4
    """psi with a angles, whose blend with the cosine has the share b of the cosine."""
    MORE_DISTANCE = 5
    """(1 + a) distance."""


class TargetCode(NamedTuple):
    """A kind, and the numbers of a distance."""

    kind: TargetKind = TargetKind.NONE
    constant: float = 0.0
    rate: float = 0.0


class MarginCode(NamedTuple):
    """A kind and its numbers; ``margins`` float64 [K] where each class has its own."""

    kind: MarginKind = MarginKind.NONE
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    margins: Tensor | None = None


def speaks_for(part: nn.Module, says: str, *methods: str) -> bool:
    """Whether what ``part`` says of itself is said by the class that has these methods: a class of an outsider's may inherit
    the one and have others of its own."""
    return _speaks_for(type(part), says, methods)  # type: ignore[arg-type]


@functools.cache
def _speaks_for(kind: type, says: str, methods: tuple[str, ...]) -> bool:
    def owner(name: str) -> type | None:
        return next((each for each in kind.__mro__ if name in vars(each)), None)

    return all(owner(method) is owner(says) for method in methods)
