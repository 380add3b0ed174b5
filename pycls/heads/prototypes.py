"""What features are multiplied with: prototypes as they are, or a recipe by which they are made, some classes at a time."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycls.heads.products import sum_type


class Prototypes(NamedTuple):
    """The prototypes of some classes.

    Attributes:
        rows: [K * num_centers, D'], those of a class adjacent.
        bias: [K], added to the measures of a class, or None.
        log_determinants: [K], of the classes' covariances, where they have such as a margin must know; or None.
    """

    rows: Tensor
    bias: Tensor | None = None
    log_determinants: Tensor | None = None

    def whole(self) -> "Prototypes":
        """These, as of a recipe."""
        return self

    def select(self, classes: Tensor, centers: int) -> "Prototypes":
        """Those of some classes, int64 [k], with ``centers`` rows each."""
        rows = (classes[:, None] * centers + torch.arange(centers, device=classes.device)).flatten()
        of_classes = (None if values is None else values.index_select(0, classes) for values in self[1:])
        return Prototypes(self.rows.index_select(0, rows), *of_classes)


class Recipe:
    """How a class's prototypes are made of what is learned of that class alone.

    All of them at once are a copy of what is learned, and their gradient is another. With many classes the pass over the
    prototypes therefore makes those of a chunk when it comes to it, and again on its way back. It is given the class of the
    recipe and these tensors, so a recipe has no options of its own.

    Args:
        of: what they are made of, [K, ...] each.
    """

    def __init__(self, *of: Tensor) -> None:
        self.of = of

    @staticmethod
    @abstractmethod
    def make(of: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """The prototypes of some classes.

        Args:
            of: these classes' rows of each tensor, [c, ...].
            out: [c * num_centers, D'], where their rows are to go; None for memory of their own, which nobody else has.
        """

    @staticmethod
    @abstractmethod
    def pull(of: Sequence[Tensor], rows: Tensor, by: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> None:
        """The way back.

        Args:
            of: as for :meth:`make`.
            rows: those that it made.
            by: the gradients by rows, by the bias, if there is one, and by log-determinants, None where that is 0.
            into: where the gradient by each of ``of`` is to be written, of its shape; None if it is not wanted.
        """

    def whole(self) -> Prototypes:
        """The prototypes of all classes."""
        return Prototypes(*_Made.apply(type(self), *self.of))

    def select(self, classes: Tensor, centers: int) -> "Recipe":
        """That of some classes, int64 [k], however many ``centers`` it makes for each."""
        return type(self)(*(values.index_select(0, classes) for values in self.of))


class _Made(torch.autograd.Function):
    """The prototypes of all classes."""

    @staticmethod
    def forward(ctx: Any, kind: type[Recipe], *of: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        made = kind.make(of, None)
        ctx.kind = kind
        ctx.save_for_backward(made.rows, *of)
        return tuple(made)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, *of = ctx.saved_tensors
        into = [torch.empty_like(values) if need else None for values, need in zip(of, ctx.needs_input_grad[1:], strict=True)]
        ctx.kind.pull(of, rows, by, into)
        return None, *into


class Source:
    """Where the pass over the prototypes has those of a chunk from, and where it leaves their gradients.

    Args:
        weight: [K * centers, D'], as they are multiplied; None where they are made.
        bias: [K], with ``weight``.
        kind: the recipe by which they are made; None where they are not.
        made_of: what it makes them of, [K, ...] each.
        centers: prototypes a class.
        dtype: in which they are multiplied.
        needs: whether the gradients by ``weight``, by ``bias`` and by each of ``made_of`` are wanted.

    Attributes:
        by_weight: the gradient, or None.
        by_bias: the gradient, or None.
        by_made_of: the gradients, each None where it is not wanted.
    """

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, kind: type[Recipe] | None, made_of: Sequence[Tensor], centers: int,
        dtype: torch.dtype, needs: Sequence[bool] = (),
    ) -> None:  # fmt: skip
        self.weight, self.bias, self.kind, self.made_of, self.centers, self.dtype = weight, bias, kind, made_of, centers, dtype
        need_weight, need_bias, *need_made_of = needs or (False,) * (2 + len(made_of))
        self.by_weight = self.by_bias = None
        if need_weight and weight is not None:
            self.by_weight = torch.empty_like(weight, memory_format=torch.contiguous_format, dtype=sum_type(weight))
        if need_bias and bias is not None:
            self.by_bias = torch.empty_like(bias)
        self.by_made_of = [
            torch.empty_like(values, memory_format=torch.contiguous_format) if need else None
            for values, need in zip(made_of, need_made_of, strict=True)
        ]
        self._low = self._high = 0
        self._buffer: Tensor | None = None  # of the first chunk's size; memory of each chunk's own would be left in pieces
        self._by_buffer: Tensor | None = None

    def take(self, low: int, high: int) -> Prototypes:
        """Those of the classes [low, high)."""
        self._low, self._high = low, high
        if self.kind is None:
            block = _cut(self.weight, low * self.centers, high * self.centers)
            assert block is not None
            return Prototypes(block, _cut(self.bias, low, high))
        out = None if self._buffer is None else self._buffer[: (high - low) * self.centers]
        self._made = self.kind.make([values[low:high] for values in self.made_of], out)
        self._buffer = self._made.rows if self._buffer is None else self._buffer
        return self._made._replace(rows=self._made.rows.to(self.dtype))

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Where the gradients by these rows and this bias go; all of it is to be written."""
        if self.kind is None:
            by_weight = _cut(self.by_weight, self._low * self.centers, self._high * self.centers)
            return by_weight, _cut(self.by_bias, self._low, self._high)
        if all(by is None for by in self.by_made_of):
            return None, None
        rows, bias, _ = self._made
        self._by_buffer = torch.empty_like(rows) if self._by_buffer is None else self._by_buffer
        self._by_made = self._by_buffer[: len(rows)], None if bias is None else torch.empty_like(bias)
        return self._by_made

    def pull(self, by_determinants: Tensor | None) -> None:
        """Once they are there, and with those by all log-determinants [K]: goes on to what the prototypes are made of."""
        if self.kind is None or all(by is None for by in self.by_made_of):
            return
        here = slice(self._low, self._high)
        by_made = *self._by_made, None if by_determinants is None else by_determinants[here]
        into = [None if by is None else by[here] for by in self.by_made_of]
        self.kind.pull([values[here] for values in self.made_of], self._made.rows, by_made, into)


def _cut(values: Tensor | None, low: int, high: int) -> Tensor | None:
    return values if values is None or (low == 0 and high == values.size(0)) else values[low:high]
