"""The backend of Triton's kernels (``triton_kernels.py``) on a CUDA device. Experimental: no GPU has run it yet.

The same as ``cpu_backend.py`` for a processor: one kernel instead of a dozen of torch's operations, for float32 operands and
for half-precision ones (``products.py``). A kernel reads the products and writes logits only if they are kept; where they
are not, the backward pass makes the gradient from the products again, in the type of the products back.
"""

import functools
import importlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pycls.heads.ops.backend import Chunk, Gradients, Operands, ScoreGrads, SoftmaxStats
from pycls.heads.ops.chunks import aligned
from pycls.heads.ops.derived_weight import Prototypes
from pycls.heads.ops.products import HALF, add_product, product, sum_type
from pycls.heads.ops.spec import TINY, LogitTransform, ScoreSpec

logger = logging.getLogger(__name__)

FORWARD_BLOCK = 1024  # classes that a program of the forward pass looks at together, at the most: eight a thread
ROWS, COLUMNS = 16, 128  # samples and classes of a program of the backward pass: a row is one warp's
STEPS, STEPS_FROM = 4, 1 << 21  # times ROWS samples that it takes from so many logits on, for fewer partial sums


def for_operands(
    spec: ScoreSpec, x: Tensor, rows: Tensor, others: Sequence[Tensor | None], targets: Sequence[Tensor]
) -> "tuple[TritonBackend | None, str]":
    """The backend if it can do this, and why it can or cannot; see :func:`pycls.heads.ops.backend.select`."""
    if spec.num_centers > 1:
        return None, "the kernels have one centre a class"
    if x.dtype is not rows.dtype or sum_type(x) is not torch.float32 or not len(x):
        return None, "the kernels are for float32 and half precision"
    if x.device.index != torch.cuda.current_device():
        return None, "the kernels run on the current device only"
    if any(values is not None and values.dtype is not torch.float32 for values in others):
        return None, "the kernels are for float32 and half precision"
    if not all(values is None or values.is_contiguous() for values in (x, rows, *others, *targets)):
        return None, "the operands are not contiguous"
    backend = _tried(x.device, x.dtype, spec.kind, spec.transform.kernel)
    return backend, "a CUDA device" if backend is not None else "the kernels do not work on this device"


class TritonBackend:
    """See :class:`pycls.heads.ops.backend.Backend`.

    Args:
        kernels: the module ``triton_kernels``.
    """

    name = "triton"

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def normalize(self, x: Tensor, target_norm: Tensor | float) -> tuple[Tensor, Tensor]:
        """In half precision it is the products that are multiplied."""
        factor = x.new_empty(len(x), 1, dtype=sum_type(x))
        self._inverse_norms(x, factor)
        factor.mul_(target_norm)
        return (x if x.dtype in HALF else x * factor), factor

    def normalize_backward_(
        self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, target_norm: Tensor | float
    ) -> None:
        """See ``torch_backend.py``."""
        along = along / target_norm**2
        if x.dtype in HALF:
            self._combine(grad, 1.0, None, x, -1.0, along, factor, 2)
        else:
            self._combine(grad, 1.0, factor, x, -1.0, along, factor, 1)

    def squares(self, rows: Tensor, constant: float, rate: float, added: Tensor | None = None) -> Tensor:
        """``constant + rate |v|^2 + added`` of each row, [N, 1]."""
        out = rows.new_empty(len(rows), 1, dtype=sum_type(rows))
        self._squares(rows, out, constant, rate, added, None)
        return out

    def add_rows_(self, out: Tensor, rows: Tensor, factor: float, per_row: Tensor) -> None:
        """out += factor per_row rows."""
        self._combine(out, 1.0, None, rows, factor, per_row, None, 1)

    def target_squares(self, weight: Tensor, target: Tensor) -> Tensor:
        """|w|^2."""
        out = weight.new_empty(len(target), dtype=sum_type(weight))
        self._squares(weight, out, 0.0, 1.0, None, _within(target, weight))
        return out

    def add_target_squares_grad_(self, grad: Tensor, weight: Tensor, target: Tensor, by_square: Tensor) -> None:
        """2 w."""
        width, samples = weight.shape[1], len(target)
        self.kernels.to_targets[(samples,)](
            grad, weight, _within(target, weight), by_square.contiguous(), samples, width,
            SAMPLES=_power(samples, 1024), BLOCK=_power(width, 512),
        )  # fmt: skip

    def forward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, scores: list[Tensor], reduce: bool,
        max_other: Tensor | None, keep: bool,
    ) -> list[SoftmaxStats]:  # fmt: skip
        """The products, and a kernel over them."""
        if chunk.inverse_norms is not None:
            self._inverse_norms(chunk.rows, chunk.inverse_norms)
        product(chunk.operands.x, chunk.rows.t(), z)
        (samples, classes), operands = z.shape, chunk.operands
        alpha, added = self._per_class(chunk)
        stats = SoftmaxStats(*z.new_empty(3, samples).unbind()) if reduce else None
        target, score = (targets[0], scores[0]) if targets and scores else (None, None)
        block = _power(classes, FORWARD_BLOCK)
        self.kernels.forward[(samples,)](
            z, target, operands.row, _factor(chunk), chunk.inverse_norms, added, chunk.slice(offset), operands.scale, score,
            *(stats or (None, None, None)), max_other, classes, z.stride(0), chunk.low, alpha,
            float(chunk.spec.transform.kernel_constant), TRANSFORM=chunk.spec.transform.kernel, KEPT=keep, BLOCK=block,
            num_warps=max(1, min(4, block // 256)),
        )  # fmt: skip
        return [] if stats is None else [stats]

    def backward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, stats: list[SoftmaxStats],
        by: ScoreGrads, grads: Gradients, recompute: bool,
    ) -> None:  # fmt: skip
        """By products and sums along rows and columns in one kernel, then the two matrix products."""
        spec, rows, operands, (samples, classes) = chunk.spec, chunk.rows, chunk.operands, z.shape
        if recompute:
            product(operands.x, rows.t(), z)
        alpha, added = self._per_class(chunk) if recompute else (1.0, None)
        steps = STEPS if z.numel() >= STEPS_FROM else 1
        grid = (-(-classes // COLUMNS), -(-samples // (ROWS * steps)))
        along_row, by_scale = (None if of is None else z.new_empty(grid[0], samples) for of in (grads.along_x, grads.scale))
        along_column = z.new_empty(grid[1], classes) if grads.bias is not None or spec.kind != "product" else None
        grad = operands.x.new_empty(samples, aligned(classes))[:, :classes]
        others, total, score = (
            None if v is None else v.contiguous() for v in (by.others[0], by.total, by.scores[0] if by.scores else None)
        )
        self.kernels.backward[grid](
            z, grad, targets[0], operands.row if recompute else None, _factor(chunk), chunk.inverse_norms, added,
            chunk.slice(offset), chunk.slice(by.total_weights) if total is not None else None, operands.scale, stats[0].max,
            stats[0].sum_exp, others, total, score, along_row, along_column, by_scale, samples, classes, z.stride(0),
            grad.stride(0), chunk.low, alpha, float(spec.transform.kernel_constant), steps, TRANSFORM=spec.transform.kernel,
            RECOMPUTE=recompute, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        columns = None if along_column is None else along_column.sum(dim=0)
        if grads.along_x is not None and along_row is not None:
            grads.along_x += along_row.sum(dim=0)[:, None]
        if grads.scale is not None and by_scale is not None:
            grads.scale += by_scale.sum()
        if grads.bias is not None and columns is not None:
            grads.bias.copy_(columns)
        factor = spec.product_factor
        if grads.x is not None:
            add_product(grads.x, grad, rows, beta=float(chunk.low > 0), alpha=factor)
        if grads.weight is not None:
            product(grad.t(), operands.x, grads.weight)
            if columns is not None and spec.kind != "product":
                self._combine(grads.weight, factor, None, rows, -factor, columns, chunk.inverse_norms, 2)

    def _combine(
        self, out: Tensor, alpha: float, p: Tensor | None, rows: Tensor, beta: float, q: Tensor, r: Tensor | None, power: int
    ) -> None:
        """``out = alpha p out + beta q r^power rows``: p, q, r a number a row, or None for 1; power 1 or 2."""
        samples, width = rows.shape
        block = _power(width, 1024)
        self.kernels.combine[(samples, -(-width // block))](out, rows, p, q, r, width, alpha, beta, POWER=power, BLOCK=block)

    def _per_class(self, chunk: Chunk) -> tuple[float, Tensor | None]:
        """What products are multiplied with, and what is added to those with a class, [c] or [c, 1]."""
        if chunk.spec.kind != "distance":
            return 1.0, chunk.bias
        return chunk.spec.product_factor, self.squares(chunk.rows, 0.0, -chunk.spec.rate, chunk.bias)

    def _squares(
        self, rows: Tensor, out: Tensor, constant: float, rate: float, added: Tensor | None, index: Tensor | None
    ) -> None:
        block = _power(rows.shape[1], 1024)
        self.kernels.squares[(len(out),)](
            rows, added, index, out, rows.shape[1], float(constant), float(rate), BLOCK=block, num_warps=max(1, block // 512)
        )

    def _inverse_norms(self, rows: Tensor, out: Tensor) -> None:
        block = _power(rows.shape[1], 1024)
        self.kernels.inverse_norms[(len(rows),)](
            rows, out, rows.shape[1], TINY**0.5, BLOCK=block, num_warps=max(1, block // 512)
        )


def _within(target: Tensor, weight: Tensor) -> Tensor:
    """Targets whose rows are there to be read: nobody has looked at the labels on a GPU, which would have to be waited for."""
    return target.clamp(max=weight.size(0) - 1)


def _factor(chunk: Chunk) -> Tensor | None:
    """What the products of features in half precision are multiplied with."""
    return chunk.operands.norm_factor if chunk.operands.x.dtype in HALF else None


def _power(size: int, most: int) -> int:
    """The power of two that holds so many, if it is not more than ``most``; at least 16."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


@functools.cache
def _tried(device: torch.device, dtype: torch.dtype, kind: Any, kernel: int) -> TritonBackend | None:
    """The backend, if the kernels for such a similarity are compiled and run on this device."""
    try:
        backend = TritonBackend(importlib.import_module("pycls.heads.ops.triton_kernels"))
    except ImportError as error:
        logger.debug("the heads' Triton kernels are not used: %s", error)
        return None
    try:
        try_out(backend, device, dtype, kind, kernel)
    except torch.OutOfMemoryError:  # it says nothing about the kernels
        raise
    except Exception as error:  # whatever Triton's compiler, the host's compiler or the driver raises
        logger.warning("the heads' Triton kernels do not work here; torch's operations are used, which take longer: %s", error)
        return None
    return backend


def try_out(backend: TritonBackend, device: torch.device, dtype: torch.dtype, kind: Any, kernel: int) -> None:
    """Every function once, with all that it may be given, on a small problem."""
    samples, classes, width = 2, 16, 16
    x, weight = (torch.ones(n, width, device=device, dtype=dtype) for n in (samples, classes))
    by, target = torch.ones(samples, device=device), torch.zeros(samples, device=device, dtype=torch.int64)
    per_class = torch.ones(classes, device=device)
    x, factor = backend.normalize(x, 1.0)
    backend.add_target_squares_grad_(weight.float(), weight, target, backend.target_squares(weight, target))
    backend.normalize_backward_(x.float(), x, factor, by[:, None], 1.0)
    operands = Operands(
        x, ScoreSpec(kind, 0.5, transform=_WithKernel(kernel)), per_class[0] if kernel == 2 else None,
        backend.squares(x, 0.0, 1.0) if kind == "distance" else None, factor if kind == "cosine" else None,
        per_class.clone() if kind == "cosine" else None, None,
    )  # fmt: skip
    chunk = Chunk(0, Prototypes(weight, None if kind == "cosine" else per_class), operands)
    z, stats = torch.empty(samples, classes, device=device), [SoftmaxStats(*torch.ones(3, samples, device=device).unbind())]
    grads = Gradients(
        torch.empty(samples, width, device=device), torch.empty(classes, width, device=device), torch.empty_like(per_class),
        torch.zeros((), device=device) if kernel == 2 else None, torch.zeros_like(by)[:, None],
    )  # fmt: skip
    for keep in (True, False):
        backend.forward(chunk, z, [target], per_class, [by.clone()], True, None if keep else by.clone(), keep)
        backend.backward(chunk, z, [target], per_class, stats, ScoreGrads([by], [by], by, per_class, None), grads, not keep)


class _WithKernel(LogitTransform):
    """A transform of this number in the kernels, with the constant 1."""

    kernel_constant = 1.0

    def __init__(self, kernel: int) -> None:
        self._kernel = kernel

    @property
    def kernel(self) -> int:
        """The number."""
        return self._kernel
