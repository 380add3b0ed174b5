"""What some heads do beside the pass over the prototypes, by compiled C (``parts.c``): centres, rings, rows made anew.

For float32 on a processor; all else has the same arithmetic by torch's operations, which stand beside each call. There they
are a dozen a step, each a pass over memory of its own.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.heads.operands import plain
from pycls.runtime.native import compiled

SOURCE = Path(__file__).with_name("parts.c")
HEADERS = (Path(__file__).with_name("exp.h"),)
VARIANTS = {"l2": 0, "l1": 1, "relative": 2}
"""``enum variant`` of parts.c."""


class Parts:
    """The functions of parts.c. All tensors are as :func:`parts_for` asks for.

    Args:
        compiled: the library.
    """

    def __init__(self, compiled: ctypes.CDLL) -> None:
        at, size, single, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_int32
        arguments: dict[str, tuple[list[Any], Any]] = {
            "pull": ([size, size, size, at, at, at, at, single, at, at, count], count),
            "move": ([size, size, size, at, at, at, at, single, count], count),
            "norms": ([size, size, at, at, at, count], number),
            "ring": ([size, at, at, number, number, number, count, at], number),
            "scale": ([size, size, at, at, single, at, count], None),
            "scale_back": ([size, size, *[at] * 8, count], None),
            "gaussian": ([size, size, *[at] * 5, count], None),
            "gaussian_back": ([size, size, *[at] * 7, count], None),
            "squares": ([size, size, at, at, count], None),
            "squares_back": ([size, size, at, at, at, count], None),
        }
        for name, (types, result) in arguments.items():
            function = getattr(compiled, f"pycls_parts_{name}")
            function.argtypes, function.restype = types, result
            setattr(self, f"_{name}", function)

    _pull: Any
    _move: Any
    _norms: Any
    _ring: Any
    _scale: Any
    _scale_back: Any
    _gaussian: Any
    _gaussian_back: Any
    _squares: Any
    _squares_back: Any

    def pull(self, x: Tensor, centers: Tensor, labels: Tensor, weights: Tensor, factor: float) -> tuple[Tensor, Tensor] | None:
        """Half the sum of ``factor weights_i |x_i - c_y|^2``, scalar, and its gradient by x [N, D].

        None if it cannot be done here, as with a label that is no class.

        Args:
            x: [N, D].
            centers: [K, D].
            labels: int64 [N].
            weights: [N].
            factor: of all weights.
        """
        gradient, value = torch.empty_like(x), x.new_empty(())
        done = _fit(x, centers, labels) and self._pull(
            *x.shape, len(centers), x.data_ptr(), centers.data_ptr(), labels.data_ptr(), weights.data_ptr(), factor,
            gradient.data_ptr(), value.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return (value, gradient) if done else None

    def move(self, x: Tensor, centers: Tensor, labels: Tensor, weights: Tensor, rate: float) -> bool:
        """Moves the centres by ``rate sum_i weights_i (x_i - c) / (1 + sum_i weights_i)``, of the samples i of a class; the
        arguments are those of :meth:`pull`. Returns whether it could be done here."""
        done = _fit(x, centers, labels) and self._move(
            *x.shape, len(centers), x.data_ptr(), centers.data_ptr(), labels.data_ptr(), weights.data_ptr(), rate,
            torch.get_num_threads(),
        )  # fmt: skip
        if done:
            torch.autograd.graph.increment_version(centers)
        return bool(done)

    def norms(self, x: Tensor, weights: Tensor) -> tuple[Tensor, float]:
        """|x| [N], at least 1e-12, and the mean of those whose weight is above 0."""
        norms = x.new_empty(len(x))
        return norms, self._norms(*x.shape, x.data_ptr(), weights.data_ptr(), norms.data_ptr(), torch.get_num_threads())

    def ring_(
        self, norms: Tensor, weights: Tensor, mean: float, radius: float, weight: float, variant: str
    ) -> tuple[Tensor, float]:
        """The ring loss, scalar, and its gradient by the radius; that by x is x times what is in ``norms`` [N] then."""
        value = norms.new_empty(())
        return value, self._ring(len(norms), norms.data_ptr(), weights.data_ptr(), mean, radius, weight, VARIANTS[variant],
                                 value.data_ptr())  # fmt: skip

    def scale(self, rows: Tensor, factors: Tensor, by: float = 1.0, out: Tensor | None = None) -> Tensor:
        """``by factors_i rows_i``, [N, D], in ``out`` if it is given."""
        out = torch.empty_like(rows) if out is None else out
        self._scale(*rows.shape, rows.data_ptr(), factors.data_ptr(), by, out.data_ptr(), torch.get_num_threads())
        return out

    def scale_back(self, of: Sequence[Tensor], by_rows: Tensor, by_numbers: Tensor, into: Sequence[Tensor | None]) -> None:
        """From the gradients by ``factors_i rows_i`` and ``factors_i numbers_i`` to those by rows, numbers and factors, which
        are ``of``, where they are wanted."""
        given = (*of, by_rows.contiguous(), by_numbers.contiguous(), *into)
        self._scale_back(*by_rows.shape, *map(_at, given), torch.get_num_threads())

    def gaussian(self, mean: Tensor, log_variance: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of means mu and log variances v [K, D] rows [-e^-v / 2, e^-v mu] [K, 2 D], in ``out`` if it is given, and summed
        [K] -(e^-v mu^2 + v) / 2 and v."""
        classes, width = mean.shape
        rows = mean.new_empty(classes, 2 * width) if out is None else out
        found = rows, mean.new_empty(classes), mean.new_empty(classes)
        self._gaussian(classes, width, *map(_at, (mean, log_variance, *found)), torch.get_num_threads())
        return found

    def gaussian_back(
        self, mean: Tensor, rows: Tensor, by_rows: Tensor, by_constant: Tensor, by_determinants: Tensor | None,
        into: Sequence[Tensor | None],
    ) -> None:  # fmt: skip
        """From the gradients by these three to those by mu and v, where they are wanted."""
        determinants = by_determinants if by_determinants is None else by_determinants.contiguous()
        given = (mean, rows, by_rows.contiguous(), by_constant.contiguous(), determinants, *into)
        self._gaussian_back(*mean.shape, *map(_at, given), torch.get_num_threads())

    def squares(self, x: Tensor) -> Tensor:
        """[x^2, x], [N, 2 D]."""
        samples, width = x.shape
        out = x.new_empty(samples, 2 * width)
        self._squares(samples, width, x.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return out

    def squares_back(self, x: Tensor, by_out: Tensor) -> Tensor:
        """From the gradient by that to the one by x."""
        by_x, by_out = torch.empty_like(x), by_out.contiguous()
        self._squares_back(*x.shape, x.data_ptr(), by_out.data_ptr(), by_x.data_ptr(), torch.get_num_threads())
        return by_x


def parts_for(rows: Sequence[Tensor], numbers: Sequence[Tensor] = ()) -> Parts | None:
    """The compiled functions, if they know how to do this.

    Args:
        rows: [N, D] each.
        numbers: [N] each.
    """
    if torch.compiler.is_compiling():
        return None
    shape = rows[0].shape
    if len(shape) != 2 or not plain(*rows, *numbers):
        return None
    if any(values.shape != shape for values in rows) or any(values.shape != shape[:1] for values in numbers):
        return None
    return _parts()


def _fit(x: Tensor, centers: Tensor, labels: Tensor) -> bool:
    """Whether there are such centres and labels."""
    if not plain(centers) or centers.ndim != 2 or centers.shape[1] != x.shape[1]:
        return False
    return labels.dtype is torch.int64 and labels.is_cpu and labels.is_contiguous() and labels.shape == x.shape[:1]


def _at(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()


@functools.cache
def _parts() -> Parts | None:
    found = compiled(SOURCE, HEADERS)
    return None if found is None else Parts(found)
