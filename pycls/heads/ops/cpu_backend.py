"""The backend of compiled C (``cpu_kernels.c``) on a processor: a row's transform, softmax and sums while it is in the cache.

For what most training on a processor is: float32 and one label a sample. Torch's operations, which do everything else, each go
over all [N, K] numbers and each wake all threads, a dozen times a step.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.heads.ops.backend import Chunk, Gradients, ScoreGrads, SoftmaxStats
from pycls.heads.ops.spec import TINY, ScoreSpec
from pycls.runtime.native import WITH_MEMORY, compiled

SOURCE = Path(__file__).with_name("cpu_kernels.c")
MOST_CENTERS, ELEMENTS_A_THREAD = 255, 1 << 13  # fewer numbers are not worth another thread


def for_operands(
    spec: ScoreSpec, x: Tensor, rows: Tensor, others: Sequence[Tensor | None], targets: Sequence[Tensor]
) -> "tuple[CpuBackend | None, str]":
    """The backend if it can do this, and why it can or cannot; see :func:`pycls.heads.ops.backend.select`."""
    if not is_plain(x, rows, *others):
        return None, "the kernels are for float32 in contiguous memory of a processor"
    if not all(target.is_contiguous() for target in targets):
        return None, "the labels are not contiguous"
    if spec.num_centers > 1 and (spec.kind != "cosine" or not spec.transform.is_identity or spec.num_centers > MOST_CENTERS):
        return None, "the kernels have several centres of plain cosines only"
    backend = _backend()
    return backend, "float32 on a processor" if backend is not None else "there is no C compiler"


def is_plain(*operands: Tensor | None) -> bool:
    """Whether all are float32 numbers in contiguous memory of a processor."""
    return all(
        v is None or (type(v) in WITH_MEMORY and v.dtype is torch.float32 and v.is_cpu and v.is_contiguous()) for v in operands
    )


def threads_for(elements: int) -> int:
    """How many threads are worth waking for so many numbers."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_A_THREAD))


class CpuBackend:
    """See :class:`pycls.heads.ops.backend.Backend`.

    Args:
        library: cpu_kernels.c.
    """

    name = "cpu"

    def __init__(self, library: ctypes.CDLL) -> None:
        at, size, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
        arguments = {
            "forward": [at] * 2, "backward": [at] * 2,
            "normalize": [at, size, size, number, number, at, at, count],
            "inverse_norms": [at, size, size, number, at, count],
            "squares": [at, size, size, number, number, at, at, count],
            "target_squares": [at, size, at, size, at, count], "target_squares_grad": [at, at, size, at, size, at, count],
            "combine": [at, at, size, size, number, at, number, at, at, count, count],
        }  # fmt: skip
        self._call: dict[str, Any] = {}
        for name, types in arguments.items():
            function = getattr(library, f"pycls_{name}")
            function.argtypes, function.restype = types, count if name == "backward" else None
            self._call[name] = function

    def normalize(self, x: Tensor, target_norm: Tensor | float) -> tuple[Tensor, Tensor]:
        """In one pass."""
        out, factor = torch.empty_like(x), x.new_empty(len(x), 1)
        self._call["normalize"](x.data_ptr(), *x.shape, float(target_norm), TINY**0.5, out.data_ptr(), factor.data_ptr(),
                                threads_for(x.numel()))  # fmt: skip
        return out, factor

    def normalize_backward_(
        self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, target_norm: Tensor | float
    ) -> None:
        """factor grad - along factor x / target_norm^2."""
        self._combine(grad, 1.0, factor, x, -1 / float(target_norm) ** 2, along, factor, 1)

    def squares(self, rows: Tensor, constant: float, rate: float, added: Tensor | None = None) -> Tensor:
        """``constant + rate |v|^2 + added`` of each row, [N, 1]."""
        out = rows.new_empty(len(rows), 1)
        self._call["squares"](rows.data_ptr(), *rows.shape, constant, rate, _at(added), out.data_ptr(),
                              threads_for(rows.numel()))  # fmt: skip
        return out

    def add_rows_(self, out: Tensor, rows: Tensor, factor: float, per_row: Tensor) -> None:
        """out += factor per_row rows."""
        self._combine(out, 1.0, None, rows, factor, per_row, None, 1)

    def target_squares(self, weight: Tensor, target: Tensor) -> Tensor:
        """|w|^2."""
        samples, width = len(target), weight.shape[1]
        out = weight.new_empty(samples)
        self._call["target_squares"](weight.data_ptr(), width, target.data_ptr(), samples, out.data_ptr(),
                                     threads_for(samples * width))  # fmt: skip
        return out

    def add_target_squares_grad_(self, grad: Tensor, weight: Tensor, target: Tensor, by_square: Tensor) -> None:
        """2 w, sample by sample: a class may be several samples' target."""
        samples, width = len(target), weight.shape[1]
        self._call["target_squares_grad"](grad.data_ptr(), weight.data_ptr(), width, target.data_ptr(), samples,
                                          by_square.contiguous().data_ptr(), threads_for(samples * width))  # fmt: skip

    def forward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, scores: list[Tensor], reduce: bool,
        max_other: Tensor | None, keep: bool,
    ) -> list[SoftmaxStats]:  # fmt: skip
        """The logits are written whether they are kept or not."""
        rows, spec, added, alpha = chunk.rows, chunk.spec, chunk.bias, 1.0
        if chunk.inverse_norms is not None:
            self._call["inverse_norms"](rows.data_ptr(), *rows.shape, TINY**0.5, chunk.inverse_norms.data_ptr(),
                                        threads_for(rows.numel()))  # fmt: skip
        elif spec.kind == "distance":
            added, alpha = self.squares(rows, 0.0, -spec.rate, chunk.bias), 2 * spec.rate
        products = z if chunk.center_index is None else z.new_empty(len(z), len(rows))
        torch.mm(chunk.operands.x, rows.t(), out=products)
        stats = SoftmaxStats(*z.new_empty(3, len(z)).unbind()) if reduce else None
        target, score = (targets[0], scores[0]) if targets and scores else (None, None)
        results = _Forward(
            products.data_ptr(), alpha, _at(chunk.operands.row), _at(added), _at(score), *map(_at, stats or (None,) * 3),
            _at(max_other),
        )  # fmt: skip
        self._call["forward"](ctypes.byref(_description(chunk, z, target, offset, None)), ctypes.byref(results))
        return [] if stats is None else [stats]

    def backward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, stats: list[SoftmaxStats],
        by: ScoreGrads, grads: Gradients, recompute: bool,
    ) -> None:  # fmt: skip
        """By products and sums along rows and columns in one pass, then the two matrix products."""
        spec, rows = chunk.spec, chunk.rows
        if recompute:
            self.forward(chunk, z, [], offset, [], False, None, True)
        grad = z.new_empty(len(z), len(rows))
        columns = grads.bias
        if columns is None and spec.kind != "product":
            columns = z.new_empty(len(rows))
        by_scale = z.new_empty(len(z)) if grads.scale is not None else None
        others, total, score = (
            None if v is None else v.contiguous() for v in (by.others[0], by.total, by.scores[0] if by.scores else None)
        )
        arguments = _Backward(
            _at(stats[0].max), _at(stats[0].sum_exp), _at(others), _at(total), _at(score), grad.data_ptr(), _at(grads.along_x),
            _at(columns), _at(by_scale),
        )  # fmt: skip
        weights = by.total_weights if by.total is not None else None
        description = _description(chunk, z, targets[0], offset, weights)
        if not self._call["backward"](ctypes.byref(description), ctypes.byref(arguments)):
            raise MemoryError("there is no memory for the sums of a head's backward pass")
        if grads.scale is not None and by_scale is not None:
            grads.scale += by_scale.sum()
        factor = spec.product_factor
        if grads.x is not None:
            grads.x.addmm_(grad, rows, beta=float(chunk.low > 0), alpha=factor)
        if grads.weight is not None:
            torch.mm(grad.t(), chunk.operands.x, out=grads.weight)
            if columns is not None and spec.kind != "product":
                self._combine(grads.weight, factor, None, rows, -factor, columns, chunk.inverse_norms, 2)

    def _combine(
        self, out: Tensor, alpha: float, p: Tensor | None, rows: Tensor, beta: float, q: Tensor, r: Tensor | None, power: int
    ) -> None:
        """``out = alpha p out + beta q r^power rows``: p, q, r a number a row, or None for 1; power 1 or 2."""
        self._call["combine"](out.data_ptr(), rows.data_ptr(), *rows.shape, alpha, _at(p), beta, q.data_ptr(), _at(r), power,
                              threads_for(rows.numel()))  # fmt: skip


class _Chunk(ctypes.Structure):
    """``chunk`` of cpu_kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "c", "stride", "index_stride", "low")),
        *((name, ctypes.c_void_p) for name in ("z", "target", "offset", "inverse", "total", "index")),
        ("scale", ctypes.c_float), ("constant", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("transform", "centers", "threads")),
    )  # fmt: skip


class _Forward(ctypes.Structure):
    """``forward_results`` of cpu_kernels.c."""

    _fields_ = (
        ("products", ctypes.c_void_p), ("alpha", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("row", "column", "score", "max", "sum_exp", "logsumexp", "max_other")),
    )  # fmt: skip


class _Backward(ctypes.Structure):
    """``backward_arguments`` of cpu_kernels.c."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in (
        "max", "sum_exp", "by_others", "by_total", "by_score", "grad", "along_row", "along_column", "by_scale"
    ))  # fmt: skip


def _description(chunk: Chunk, z: Tensor, target: Tensor | None, offset: Tensor | None, total: Tensor | None) -> _Chunk:
    (samples, classes), scale, transform = z.shape, chunk.operands.scale, chunk.spec.transform
    index = chunk.center_index
    return _Chunk(
        samples, classes, z.stride(0), 0 if index is None else index.stride(0), chunk.low,
        z.data_ptr(), _at(target), _at(offset, chunk.low), _at(chunk.inverse_norms), _at(total, chunk.low), _at(index),
        1.0 if scale is None else float(scale), transform.kernel_constant, transform.kernel or 0, chunk.spec.num_centers,
        threads_for(z.numel() * chunk.spec.num_centers),
    )  # fmt: skip


def _at(values: Tensor | None, start: int = 0) -> int | None:
    """Where the values of a vector are, from the ``start``-th float32 on."""
    return None if values is None else values.data_ptr() + 4 * start


@functools.cache
def _backend() -> CpuBackend | None:
    library = compiled(SOURCE, [SOURCE.with_name("exp.h")])
    return None if library is None else CpuBackend(library)
