"""The elementwise work of a chunk by Triton's kernels (``rows_triton.py``), on a CUDA device.

The same as ``gram_native.py`` for a processor: one kernel instead of a dozen of torch's operations, for float32 operands and
for half-precision ones (``products.py``). A kernel reads the products and writes logits only if they are kept; where they
are not, the backward pass makes the gradient from the products again, in the type of the products back.
"""

import functools
import importlib
import logging
from typing import Any

import torch
from torch import Tensor

from pycls.heads.form import TINY, Form, Link
from pycls.heads.gpu_sizes import aligned
from pycls.heads.gram_chunk import Chunk, Gradients, Operands
from pycls.heads.gram_sums import Sums
from pycls.heads.products import HALF, add_product, product, sum_type
from pycls.heads.prototypes import Prototypes

logger = logging.getLogger(__name__)

FORWARD_BLOCK = 1024
"""Classes that a program of the forward pass looks at together, at the most: eight a thread."""

ROWS, COLUMNS = 16, 128
"""Samples and classes that a program of the backward pass looks at together: a row is one warp's."""

STEPS_FROM = 1 << 21
"""From so many logits on a program of the backward pass takes ``STEPS`` times ``ROWS`` samples, so that there are fewer
partial sums; below it there would be too few programs."""

STEPS = 4


class TritonRows:
    """The kernels, as :class:`pycls.heads.gram_rows.RowFunctions`; arguments are those of :class:`gram_native.Rows`.

    Args:
        kernels: the module ``rows_triton``.
    """

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def stretch(self, x: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """Features [N, D] of the norm ``length``, and what they were multiplied with [N, 1]; a zero row stays. In half
        precision the features as they are: it is their products that are to be multiplied."""
        factor = x.new_empty(len(x), 1, dtype=sum_type(x))
        self._inverse(x, factor)
        factor.mul_(length)
        return (x if x.dtype in HALF else x * factor), factor

    def unstretch_(self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, length: Tensor | float) -> None:
        """From the gradient by stretched features ``x`` to that by the features; ``along`` [N, 1] are the sums along x."""
        along = along / length**2
        if x.dtype in HALF:
            self.combine_(grad, 1.0, None, x, -1.0, along, factor, 2)
        else:
            self.combine_(grad, 1.0, factor, x, -1.0, along, factor, 1)

    def squares(self, rows: Tensor, constant: float, rate: float, added: Tensor | None = None) -> Tensor:
        """``constant + rate |v|^2 + added`` of each row, [N, 1]."""
        out = rows.new_empty(len(rows), 1, dtype=sum_type(rows))
        self._squares(rows, out, constant, rate, added, None)
        return out

    def squares_of_targets(self, weight: Tensor, column: Tensor) -> Tensor:
        """|w|^2 [N] of the prototypes of a column of targets, any one for -1."""
        out = weight.new_empty(len(column), dtype=sum_type(weight))
        self._squares(weight, out, 0.0, 1.0, None, _within(column, weight))
        return out

    def add_to_targets(self, grad: Tensor, weight: Tensor, column: Tensor, by_square: Tensor) -> None:
        """Adds the gradient by those squares, [N, 1], to the one by all prototypes."""
        width, samples = weight.shape[1], len(column)
        self.kernels.to_targets[(samples,)](
            grad, weight, _within(column, weight), by_square.contiguous(), samples, width,
            SAMPLES=_power(samples, 1024), BLOCK=_power(width, 512),
        )  # fmt: skip

    def forward(
        self, part: Chunk, z: Tensor, column: Tensor | None, offset: Tensor | None, measure: Tensor | None,
        sums: Sums | None, rival: Tensor | None, kept: bool,
    ) -> None:  # fmt: skip
        """The logits of a chunk, in ``z`` [N, c] if they are ``kept``; of cosines also 1 / |w|."""
        if part.inverse is not None:
            self._inverse(part.block, part.inverse)
        product(part.work.x, part.block.t(), z)
        (samples, classes), work = z.shape, part.work
        alpha, added = self._of_classes(part)
        code, kappa = _link(part.form)
        block = _power(classes, FORWARD_BLOCK)
        self.kernels.forward[(samples,)](
            z, column, work.row, work.factor, part.inverse, added, _cut(offset, part, z), work.scale, measure,
            *(sums or (None, None, None)), rival, classes, z.stride(0), part.low, alpha, kappa,
            LINK=code, KEPT=kept, BLOCK=block, num_warps=max(1, min(4, block // 256)),
        )  # fmt: skip

    def backward(
        self, part: Chunk, z: Tensor, column: Tensor, offset: Tensor | None, sums: Sums, by_others: Tensor,
        by_total: Tensor | None, total: Tensor | None, by_measure: Tensor | None, grads: Gradients,
        again: bool,
    ) -> None:  # fmt: skip
        """A chunk's share of all gradients; ``again`` if ``z`` does not have the logits."""
        form, block, work, (samples, classes) = part.form, part.block, part.work, z.shape
        if again:
            product(work.x, block.t(), z)
        alpha, added = self._of_classes(part) if again else (1.0, None)
        steps = STEPS if z.numel() >= STEPS_FROM else 1
        grid = (-(-classes // COLUMNS), -(-samples // (ROWS * steps)))
        along_row, by_scale = (None if of is None else z.new_empty(grid[0], samples) for of in (grads.along_x, grads.scale))
        along_column = z.new_empty(grid[1], classes) if grads.bias is not None or form.kind != "product" else None
        grad = work.x.new_empty(samples, aligned(classes))[:, :classes]
        others, whole, measures = (v if v is None else v.contiguous() for v in (by_others, by_total, by_measure))
        code, kappa = _link(form)
        self.kernels.backward[grid](
            z, grad, column, work.row if again else None, work.factor, part.inverse, added, _cut(offset, part, z),
            _cut(total, part, z) if by_total is not None else None, work.scale, sums.top, sums.total, others, whole, measures,
            along_row, along_column, by_scale, samples, classes, z.stride(0), grad.stride(0), part.low, alpha, kappa, steps,
            LINK=code, AGAIN=again, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        columns = None if along_column is None else along_column.sum(dim=0)
        if grads.along_x is not None and along_row is not None:
            grads.along_x += along_row.sum(dim=0)[:, None]
        if grads.scale is not None and by_scale is not None:
            grads.scale += by_scale.sum()
        if grads.bias is not None and columns is not None:
            grads.bias.copy_(columns)
        factor = 2 * form.rate if form.kind == "distance" else 1.0
        if grads.x is not None:
            add_product(grads.x, grad, block, beta=float(part.low > 0), alpha=factor)
        if grads.weight is not None:
            product(grad.t(), work.x, grads.weight)
            if columns is not None and form.kind != "product":
                self.combine_(grads.weight, factor, None, block, -factor, columns, part.inverse, 2)

    def combine_(
        self, out: Tensor, alpha: float, p: Tensor | None, rows: Tensor, beta: float, q: Tensor, r: Tensor | None, power: int
    ) -> None:
        """``out = alpha p out + beta q r^power rows``: p, q, r a number a row, or None for 1; power 1 or 2."""
        samples, width = rows.shape
        block = _power(width, 1024)
        self.kernels.combine[(samples, -(-width // block))](out, rows, p, q, r, width, alpha, beta, POWER=power, BLOCK=block)

    def _of_classes(self, part: Chunk) -> tuple[float, Tensor | None]:
        """What products are multiplied with, and what is added to those with a class, [c] or [c, 1]."""
        if part.form.kind != "distance":
            return 1.0, part.bias
        return 2.0 * part.form.rate, self.squares(part.block, 0.0, -part.form.rate, part.bias)

    def _squares(
        self, rows: Tensor, out: Tensor, constant: float, rate: float, added: Tensor | None, index: Tensor | None
    ) -> None:
        block = _power(rows.shape[1], 1024)
        self.kernels.squares[(len(out),)](
            rows, added, index, out, rows.shape[1], float(constant), float(rate), BLOCK=block, num_warps=max(1, block // 512)
        )

    def _inverse(self, rows: Tensor, out: Tensor) -> None:
        block = _power(rows.shape[1], 1024)
        self.kernels.inverse[(len(rows),)](
            rows, out, rows.shape[1], TINY**0.5, BLOCK=block, num_warps=max(1, block // 512)
        )


def _link(form: Form) -> tuple[int, float]:
    """The link's number and its constant."""
    code, constant = form.link.compiled or (0, 0.0)
    return code, float(constant)


def _within(column: Tensor, weight: Tensor) -> Tensor:
    """Targets whose rows are there to be read: nobody has looked at the labels on a GPU, which would have to be waited for."""
    return column.clamp(max=weight.size(0) - 1)


def _power(size: int, most: int) -> int:
    """The power of two that holds so many, if it is not more than ``most``; at least 16."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _cut(values: Tensor | None, part: Chunk, z: Tensor) -> Tensor | None:
    """Of a vector [K] what belongs to the chunk's classes."""
    return values if values is None or len(values) == z.shape[1] else values[part.low : part.low + z.shape[1]]


def triton_rows(
    form: Form, bias: Tensor | None, x: Tensor | None, weight: Tensor | None, *others: Tensor | None
) -> TritonRows | None:
    """The kernels, if they know how to do this; the form's link has a number and each class one prototype.

    Args:
        form: the similarity.
        bias: [K], or None.
        x: features [N, D] in float32 or half precision.
        weight: prototypes [K, D], of the same type.
        others: vectors of the pass in float32.
    """
    assert x is not None and weight is not None
    if x.dtype is not weight.dtype or sum_type(x) is not torch.float32 or not len(x):
        return None
    if x.device.index != torch.cuda.current_device():  # on which the kernels run
        return None
    for values in (bias, *others):
        if values is not None and values.dtype is not torch.float32:
            return None
    if not all(values is None or values.is_contiguous() for values in (bias, x, weight, *others)):
        return None
    return _tried(x.device, x.dtype, form.kind, _link(form)[0])


@functools.cache
def _tried(device: torch.device, dtype: torch.dtype, kind: Any, code: int) -> TritonRows | None:
    """The kernels, if those for such a similarity are compiled and run on this device."""
    try:
        rows = TritonRows(importlib.import_module("pycls.heads.rows_triton"))
    except ImportError as error:
        logger.debug("the heads' Triton kernels are not used: %s", error)
        return None
    try:
        try_out(rows, device, dtype, kind, code)
    except torch.OutOfMemoryError:  # it says nothing about the kernels
        raise
    except Exception as error:  # whatever Triton's compiler, the host's compiler or the driver raises
        logger.warning("the heads' Triton kernels do not work here; torch's operations are used, which take longer: %s", error)
        return None
    return rows


class _Numbered(Link):
    """The link of a number of rows.c."""

    def __init__(self, code: int) -> None:
        self.code = code

    @property
    def compiled(self) -> tuple[int, float]:
        """The number, and a constant."""
        return self.code, 1.0


def try_out(rows: TritonRows, device: torch.device, dtype: torch.dtype, kind: Any, code: int) -> None:
    """Every function once, with all that it may be given, on a small problem."""
    samples, classes, width = 2, 16, 16
    x, weight = (torch.ones(n, width, device=device, dtype=dtype) for n in (samples, classes))
    by, column = torch.ones(samples, 1, device=device), torch.zeros(samples, 1, device=device, dtype=torch.int64)
    per_class = torch.ones(classes, device=device)
    x, factor = rows.stretch(x, 1.0)
    rows.add_to_targets(weight.float(), weight, column, rows.squares_of_targets(weight, column)[:, None])
    rows.unstretch_(x.float(), x, factor, by, 1.0)
    form = Form(kind, 0.5, link=_Numbered(code))
    work = Operands(
        x, form, per_class[0] if code == 2 else None,
        rows.squares(x, 0.0, 1.0) if kind == "distance" else None, per_class.clone() if kind == "cosine" else None, None,
        factor if kind == "cosine" and dtype in HALF else None,
    )  # fmt: skip
    prototypes = Prototypes(weight, None if kind == "cosine" else per_class)
    part, z = Chunk(0, prototypes, work), torch.empty(samples, classes, device=device)
    sums = Sums(*torch.ones(3, samples, device=device).unbind())
    grads = Gradients(
        torch.empty(samples, width, device=device), torch.empty(classes, width, device=device), torch.empty_like(per_class),
        torch.zeros((), device=device) if code == 2 else None, torch.zeros_like(by),
    )  # fmt: skip
    for kept in (True, False):
        rows.forward(part, z, column, per_class, by[:, 0].clone(), sums, None if kept else by[:, 0].clone(), kept)
        rows.backward(part, z, column, per_class, sums, by, by[:, 0], per_class, by, grads, not kept)
