"""The elementwise work of a chunk by compiled C (``rows.c``): each row's links, softmax and sums while it is in the cache.

For what most training on a processor is: float32, one label a sample, one prototype a class, and a link that the C knows.
Everything else, and a machine without a compiler, has the same arithmetic by torch's own operations (``gram_chunk.py``),
which is the reference. Torch's operations each go over all [N, K] numbers and each wake all threads, a dozen times a step.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.heads.form import TINY, Form
from pycls.heads.gram_chunk import Chunk, Gradients
from pycls.heads.gram_rows import RowFunctions
from pycls.heads.gram_sums import Sums
from pycls.heads.gram_triton import triton_rows
from pycls.heads.operands import plain, threads_for
from pycls.runtime.native import compiled

SOURCE = Path(__file__).with_name("rows.c")
HEADERS = (SOURCE.with_suffix(".h"), SOURCE.with_name("exp.h"))


class _Chunk(ctypes.Structure):
    """``chunk`` of rows.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "c", "stride", "low")),
        *((name, ctypes.c_void_p) for name in ("target", "offset", "inverse", "total")),
        ("scale", ctypes.c_float), ("kappa", ctypes.c_float), ("link", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


class Rows:
    """The functions of rows.c.

    Args:
        compiled: the library.
    """

    def __init__(self, compiled: ctypes.CDLL) -> None:
        at, size, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
        arguments = {
            "forward": [at, at, number, *[at] * 7], "backward": [at] * 11,
            "stretch": [at, size, size, number, number, at, at, count], "inverse": [at, size, size, number, at, count],
            "squares": [at, size, size, number, number, at, at, count],
            "of_targets": [at, size, at, size, at, count], "to_targets": [at, at, size, at, size, at],
            "combine": [at, at, size, size, number, at, number, at, at, count, count],
        }  # fmt: skip
        for name, types in arguments.items():
            function = getattr(compiled, f"pycls_rows_{name}")
            function.argtypes, function.restype = types, count if name == "backward" else None
            setattr(self, f"_{name}", function)

    _forward: Any
    _backward: Any
    _stretch: Any
    _inverse: Any
    _squares: Any
    _combine: Any
    _of_targets: Any
    _to_targets: Any

    def stretch(self, x: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """Features [N, D] of the norm ``length``, and what they were multiplied with [N, 1]; a zero row stays."""
        out, factor = torch.empty_like(x), x.new_empty(len(x), 1)
        self._stretch(x.data_ptr(), *x.shape, float(length), TINY**0.5, out.data_ptr(), factor.data_ptr(),
                      threads_for(x.numel()))  # fmt: skip
        return out, factor

    def unstretch_(self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, length: Tensor | float) -> None:
        """From the gradient by stretched features ``x`` to that by the features; ``along`` [N, 1] are the sums along x."""
        self.combine_(grad, 1.0, factor, x, -1 / float(length) ** 2, along, factor, 1)

    def squares(self, rows: Tensor, constant: float, rate: float, added: Tensor | None = None) -> Tensor:
        """``constant + rate |v|^2 + added`` of each row, [N, 1]."""
        out = rows.new_empty(len(rows), 1)
        self._squares(rows.data_ptr(), *rows.shape, constant, rate, _at(added), out.data_ptr(), threads_for(rows.numel()))
        return out

    def squares_of_targets(self, weight: Tensor, column: Tensor) -> Tensor:
        """|w|^2 [N] of the prototypes of a column of targets, any one for -1."""
        samples, width = len(column), weight.shape[1]
        out = weight.new_empty(samples)
        self._of_targets(weight.data_ptr(), width, column.data_ptr(), samples, out.data_ptr(), threads_for(samples * width))
        return out

    def add_to_targets(self, grad: Tensor, weight: Tensor, column: Tensor, by_square: Tensor) -> None:
        """Adds the gradient by those squares, [N, 1], to the one by all prototypes."""
        self._to_targets(grad.data_ptr(), weight.data_ptr(), weight.shape[1], column.data_ptr(), len(column),
                         by_square.contiguous().data_ptr())  # fmt: skip

    def forward(
        self, part: Chunk, z: Tensor, column: Tensor | None, offset: Tensor | None, measure: Tensor | None,
        sums: Sums | None, rival: Tensor | None, kept: bool,
    ) -> None:  # fmt: skip
        """The logits of a chunk, in ``z`` [N, c]; of cosines also 1 / |w|, where the operands keep it.

        Args:
            part: the classes.
            z: adjacent within a row.
            column: int64 [N, 1], the targets, or None.
            offset: [K], added to the logits before they are compared.
            measure: [N]; the measures of those targets that are among these classes are written to it. None if not wanted.
            sums: to be filled; None if they are not wanted.
            rival: [N], for the largest logit that is not the target's, or None.
            kept: whether the logits are read again; these functions write them anyhow.
        """
        block, form, classes, alpha = part.block, part.form, part.bias, 1.0
        if part.inverse is not None:
            self._inverse(block.data_ptr(), *block.shape, TINY**0.5, part.inverse.data_ptr(), threads_for(block.numel()))
        elif form.kind == "distance":
            classes, alpha = self.squares(block, 0.0, -form.rate, part.bias), 2 * form.rate
        torch.mm(part.work.x, block.t(), out=z)
        top, total, log_sum = sums or (None, None, None)
        self._forward(
            ctypes.byref(_about(part, z, column, offset, None)), z.data_ptr(), alpha, _at(part.work.row), _at(classes),
            _at(measure), _at(top), _at(total), _at(log_sum), _at(rival),
        )  # fmt: skip

    def backward(
        self, part: Chunk, z: Tensor, column: Tensor, offset: Tensor | None, sums: Sums, by_others: Tensor,
        by_total: Tensor | None, total: Tensor | None, by_measure: Tensor | None, grads: Gradients,
        again: bool,
    ) -> None:  # fmt: skip
        """A chunk's share of all gradients.

        Args:
            part: the classes.
            z: their logits [N, c].
            column: as in :meth:`forward`.
            offset: as in :meth:`forward`.
            sums: of all classes, as in :meth:`forward`.
            by_others: [N, 1], gradient by the log of the sum.
            by_total: [N], gradient by the sum of the logits weighted by
            total: [K]; or None.
            by_measure: [N, 1], gradient by the targets' measures, or None.
            grads: what is wanted.
            again: whether the logits are to be made first, in ``z``.
        """
        form, block = part.form, part.block
        if again:
            self.forward(part, z, None, offset, None, None, None, True)
        grad = z.new_empty(z.shape)
        columns = by_scale = None
        if grads.bias is not None:
            columns = grads.bias
        elif form.kind != "product":
            columns = z.new_empty(z.shape[1])
        if grads.scale is not None:
            by_scale = z.new_empty(len(z))
        others, whole, measures = (v if v is None else v.contiguous() for v in (by_others, by_total, by_measure))
        if not self._backward(
            ctypes.byref(_about(part, z, column, offset, total)), z.data_ptr(), sums.top.data_ptr(), sums.total.data_ptr(),
            _at(others), _at(whole), _at(measures), grad.data_ptr(), _at(grads.along_x), _at(columns),
            _at(by_scale),
        ):  # fmt: skip
            raise MemoryError("there is no memory for the sums of a head's backward pass")
        if grads.scale is not None and by_scale is not None:
            grads.scale += by_scale.sum()
        factor = 2 * form.rate if form.kind == "distance" else 1.0
        if grads.x is not None:
            grads.x.addmm_(grad, block, beta=float(part.low > 0), alpha=factor)
        if grads.weight is not None:
            torch.mm(grad.t(), part.work.x, out=grads.weight)
            if columns is not None and form.kind != "product":
                self.combine_(grads.weight, factor, None, block, -factor, columns, part.inverse, 2)

    def combine_(
        self, out: Tensor, alpha: float, p: Tensor | None, rows: Tensor, beta: float, q: Tensor, r: Tensor | None, power: int
    ) -> None:
        """``out = alpha p out + beta q r^power rows``: p, q, r a number a row, or None for 1; power 1 or 2."""
        self._combine(out.data_ptr(), rows.data_ptr(), *rows.shape, alpha, _at(p), beta, q.data_ptr(), _at(r), power,
                      threads_for(rows.numel()))  # fmt: skip


def _about(part: Chunk, z: Tensor, column: Tensor | None, offset: Tensor | None, total: Tensor | None) -> _Chunk:
    samples, classes = z.shape
    scale = part.work.scale
    code, constant = part.form.link.compiled or (0, 0.0)
    return _Chunk(
        samples, classes, z.stride(0), part.low, _at(column), _at(offset, part.low), _at(part.inverse), _at(total, part.low),
        1.0 if scale is None else float(scale), constant, code, threads_for(z.numel()),
    )  # fmt: skip


def _at(values: Tensor | None, start: int = 0) -> int | None:
    """Where the values of a vector are, from the ``start``-th float32 on."""
    return None if values is None else values.data_ptr() + 4 * start


@functools.cache
def _rows() -> Rows | None:
    found = compiled(SOURCE, HEADERS)
    return None if found is None else Rows(found)


def rows_for(form: Form, columns: list[Tensor], bias: Tensor | None, *others: Tensor | None) -> RowFunctions | None:
    """The compiled functions, if they know how to do this: those of rows.c on a processor, Triton's on CUDA.

    Args:
        form: the similarity; with one centre a class.
        columns: of targets, int64 [N, 1] each.
        bias: [K], added to the measures.
        others: features, prototypes and whatever else the pass is made of.
    """
    if form.num_centers > 1 or not _known(form, columns, bias):
        return None
    if others[0] is not None and others[0].is_cuda:
        return triton_rows(form, bias, *others)
    return _rows() if plain(bias, *others) else None


def fits(form: Form, column: Tensor, bias: Tensor | None, *others: Tensor | None) -> bool:
    """Whether compiled C knows such a form, and such operands: a column of targets, [N], a bias [K], and others."""
    return _known(form, [column], bias) and plain(bias, *others)


def _known(form: Form, columns: list[Tensor], bias: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or len(columns) > 1 or form.link.compiled is None:
        return False
    return not (bias is not None and form.kind == "cosine") and all(column.is_contiguous() for column in columns)
