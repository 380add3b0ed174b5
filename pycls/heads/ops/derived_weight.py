"""The prototypes that features are multiplied with: weights as they are, or derived from them chunk by chunk."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycls.heads.ops.products import float_products, sum_type


class Prototypes(NamedTuple):
    """The prototypes of some classes.

    Attributes:
        rows: [K * num_centers, D'], those of a class adjacent.
        bias: [K], added to the scores of a class, or None.
        log_determinants: [K], of the classes' covariances, where a margin must know them; or None.
    """

    rows: Tensor
    bias: Tensor | None = None
    log_determinants: Tensor | None = None

    def materialize(self) -> "Prototypes":
        """These, as of a :class:`DerivedWeight`."""
        return self

    def select(self, classes: Tensor, num_centers: int) -> "Prototypes":
        """Those of some classes, int64 [k], with ``num_centers`` rows each."""
        rows = (classes[:, None] * num_centers + torch.arange(num_centers, device=classes.device)).flatten()
        per_class = (None if values is None else values.index_select(0, classes) for values in self[1:])
        return Prototypes(self.rows.index_select(0, rows), *per_class)


class DerivedWeight:
    """How a class's prototypes are computed from the parameters of that class alone.

    All of them at once are a copy of the parameters, and their gradient is another. With many classes the pass over the
    prototypes therefore derives those of a chunk when it comes to it, and again in the backward pass. It is given the class
    and the inputs, so a derived weight has no options of its own.

    Args:
        inputs: the parameters, [K, ...] each.
    """

    def __init__(self, *inputs: Tensor) -> None:
        self.inputs = inputs

    @staticmethod
    @abstractmethod
    def forward(inputs: Sequence[Tensor], out: Tensor | None) -> Prototypes:
        """The prototypes of some classes.

        Args:
            inputs: these classes' rows of each parameter, [c, ...].
            out: [c * num_centers, D'], where the prototypes are to be written; None for new memory.
        """

    @staticmethod
    @abstractmethod
    def backward(
        inputs: Sequence[Tensor], rows: Tensor, grad_outputs: Sequence[Tensor | None], grad_inputs: Sequence[Tensor | None]
    ) -> None:
        """Gradients of the parameters.

        Args:
            inputs: as for :meth:`forward`.
            rows: what it returned.
            grad_outputs: gradients by rows, bias (if there is one) and log-determinants; None where that is 0.
            grad_inputs: where the gradient by each input is to be written, of its shape; None if it is not wanted.
        """

    def materialize(self) -> Prototypes:
        """The prototypes of all classes, differentiable."""
        if not torch.is_grad_enabled():  # then torch.compile does not follow a class through a function of autograd
            return self.forward(self.inputs, None)
        return Prototypes(*_Materialized.apply(type(self), *self.inputs))

    def select(self, classes: Tensor, num_centers: int) -> "DerivedWeight":
        """That of some classes, int64 [k]."""
        return type(self)(*(values.index_select(0, classes) for values in self.inputs))


class _Materialized(torch.autograd.Function):
    """The prototypes of all classes."""

    @staticmethod
    def forward(ctx: Any, kind: type[DerivedWeight], *inputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        prototypes = kind.forward(inputs, None)
        ctx.kind = kind
        ctx.save_for_backward(prototypes.rows, *inputs)
        return tuple(prototypes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, *inputs = ctx.saved_tensors
        grads = [torch.empty_like(v) if needed else None for v, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True)]
        with float_products(rows):
            ctx.kind.backward(inputs, rows, grad_outputs, grads)
        return None, *grads


class PrototypeChunks:
    """Gives the pass its chunks of prototypes, and collects their gradients.

    Args:
        weight: [K * num_centers, D'], as they are multiplied, with the bias [K]; None where they are derived.
        kind: how they are derived, from the inputs, [K, ...] each; None where they are not.
        num_centers: prototypes a class.
        dtype: in which they are multiplied.
        needs: whether the gradients by ``weight``, by ``bias`` and by each of ``inputs`` are wanted.

    Attributes:
        grad_weight: the gradient, or None.
        grad_bias: the gradient, or None.
        grad_inputs: the gradients, each None where it is not wanted.
    """

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, kind: type[DerivedWeight] | None, inputs: Sequence[Tensor],
        num_centers: int, dtype: torch.dtype, needs: Sequence[bool] = (),
    ) -> None:  # fmt: skip
        self.weight, self.bias, self.kind, self.inputs = weight, bias, kind, inputs
        self.num_centers, self.dtype = num_centers, dtype
        need_weight, need_bias, *need_inputs = needs or (False,) * (2 + len(inputs))
        self.grad_weight = self.grad_bias = None
        if need_weight and weight is not None:
            self.grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format, dtype=sum_type(weight))
        if need_bias and bias is not None:
            self.grad_bias = torch.empty_like(bias)
        self.grad_inputs = [
            torch.empty_like(values, memory_format=torch.contiguous_format) if needed else None
            for values, needed in zip(inputs, need_inputs, strict=True)
        ]
        self._low = self._high = 0
        self._buffer: Tensor | None = None  # of the first chunk's size, used again: memory of each chunk's own fragments
        self._grad_buffer: Tensor | None = None

    def take(self, low: int, high: int) -> Prototypes:
        """Those of the classes [low, high)."""
        self._low, self._high = low, high
        if self.kind is None:
            rows = _slice(self.weight, low * self.num_centers, high * self.num_centers)
            assert rows is not None
            return Prototypes(rows, _slice(self.bias, low, high))
        out = None if self._buffer is None else self._buffer[: (high - low) * self.num_centers]
        self._derived = self.kind.forward([values[low:high] for values in self.inputs], out)
        self._buffer = self._derived.rows if self._buffer is None else self._buffer
        return self._derived._replace(rows=self._derived.rows.to(self.dtype))

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Where the gradients by the taken rows and bias go; all of it is to be written."""
        if self.kind is None:
            grad_weight = _slice(self.grad_weight, self._low * self.num_centers, self._high * self.num_centers)
            return grad_weight, _slice(self.grad_bias, self._low, self._high)
        if all(grad is None for grad in self.grad_inputs):
            return None, None
        rows, bias, _ = self._derived
        self._grad_buffer = torch.empty_like(rows) if self._grad_buffer is None else self._grad_buffer
        self._grad_derived = self._grad_buffer[: len(rows)], None if bias is None else torch.empty_like(bias)
        return self._grad_derived

    def backward(self, grad_determinants: Tensor | None) -> None:
        """Once those are there, and with the gradient by all log-determinants [K]: goes on to what the rows derive from."""
        if self.kind is None or all(grad is None for grad in self.grad_inputs):
            return
        here = slice(self._low, self._high)
        grad_outputs = *self._grad_derived, None if grad_determinants is None else grad_determinants[here]
        grad_inputs = [None if grad is None else grad[here] for grad in self.grad_inputs]
        self.kind.backward([values[here] for values in self.inputs], self._derived.rows, grad_outputs, grad_inputs)


def _slice(values: Tensor | None, low: int, high: int) -> Tensor | None:
    return values if values is None or (low == 0 and high == values.size(0)) else values[low:high]
