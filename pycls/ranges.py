"""What a number may be: written once beside its default, and checked by the configuration and by constructors alike.

An argument of a component says it in its annotation, ``margin: Annotated[float, Range(0, 2)]``; an option that belongs to no
component has it in ``pycls/config/options.py``. Of lists and tuples it is each entry's.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
T = TypeVar("T")

LARGEST_INT = 2**31 - 1
"""Of a whole number whose range has no upper end: what counts, sizes and widths are kept in below Python."""


@dataclass(frozen=True)
class Range:
    """An interval of numbers. Infinities and NaN are in none.

    Attributes:
        low: its lower end.
        high: its upper end; infinite for none, which for whole numbers means :data:`LARGEST_INT`.
        open_left: whether ``low`` itself is left out.
        open_right: whether ``high`` itself is left out.
        also: further values with a special meaning, such as -1 for "as elsewhere".
    """

    low: float
    high: float = math.inf
    open_left: bool = False
    open_right: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if value in self.also:
            return True
        if isinstance(value, int) and self.high == math.inf and value > LARGEST_INT:
            return False
        above = value > self.low if self.open_left else value >= self.low
        return above and (value < self.high if self.open_right else value <= self.high)

    def __str__(self) -> str:
        """As in ``expected between 0 and 1``."""
        besides = "".join(f"{_shown(value)} or " for value in self.also)
        if not (self.open_left or self.open_right or self.high == math.inf):
            return f"{besides}between {_shown(self.low)} and {_shown(self.high)}"
        ends = [f"{'above' if self.open_left else 'at least'} {_shown(self.low)}"]
        if self.high != math.inf:
            ends.append(f"{'below' if self.open_right else 'at most'} {_shown(self.high)}")
        return besides + " and ".join(ends)


COUNT = Range(1)
"""Of something of which there has to be one."""
SHARE = Range(0, 1)
PART = Range(0, 1, open_right=True)
"""A share that leaves something over."""
NONZERO_SHARE = Range(0, 1, open_left=True)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, open_left=True)


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def complaint(value: Any, allowed: Range | None) -> str:
    """What is wrong with a number, or the first wrong one in a list: ``expected at least 0, found -1``; "" for nothing.

    Args:
        value: anything; what is no number, and holds none, is right.
        allowed: None for any finite number.
    """
    for number in _numbers(value):
        if isinstance(number, float) and not math.isfinite(number):
            return f"expected a finite number, found {number!r}"
        if allowed is not None and number not in allowed:
            too_large = isinstance(number, int) and allowed.high == math.inf and number > LARGEST_INT
            return f"expected {f'at most {LARGEST_INT}' if too_large else allowed}, found {number!r}"
    return ""


def _numbers(value: Any) -> Iterable[int | float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def range_of(hint: Any) -> Range | None:
    """The range that a type says, itself or one of its alternatives; None for none."""
    if get_origin(hint) is Annotated:
        found = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        return found[0] if found else range_of(get_args(hint)[0])
    ranges = [range_of(kind) for kind in get_args(hint)]
    return next((found for found in ranges if found is not None), None)


def in_range(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: raise ``ValueError`` for an argument that is outside the range in its annotation.

    A number whose annotation says no range is not looked at.
    """

    @functools.cache  # at the first call, when every name in an annotation exists
    def declared() -> tuple[inspect.Signature, dict[str, Range]]:
        hints = get_type_hints(function, include_extras=True)
        ranges = {name: found for name, hint in hints.items() if (found := range_of(hint)) is not None}
        return inspect.signature(function), ranges

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        signature, ranges = declared()
        given = signature.bind(*args, **kwargs).arguments if ranges else {}
        for name, allowed in ranges.items():
            if name in given and (wrong := complaint(given[name], allowed)):
                raise ValueError(f"{name}: {wrong}")
        return function(*args, **kwargs)

    return checked
