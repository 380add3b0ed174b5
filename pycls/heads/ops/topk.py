"""The top-k SVMs' losses and their gradients by compiled C (``topk.c``), in one pass over the scores.

By torch's operations, which do the same elsewhere (``../topk_svm.py``, ``power_sums.py``), they are some thirty passes.
"""

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.heads.ops.cpu_backend import is_plain, threads_for
from pycls.runtime.native import compiled

SOURCE = Path(__file__).with_name("topk.c")
HEADER = Path(__file__).with_name("exp.h")
MOST_PLACES = 8
"""k at the most: MOST of topk.c."""


def topk_losses(
    logits: Tensor, target: Tensor, labels: Tensor, k: int, alpha: float, tau: float | None = None, threshold: float = 0.0
) -> Tensor | None:
    """Loss a sample [N], or None where it cannot be had this way.

    Args:
        logits: [N, K]; the label's own are not looked at.
        target: the label's, with its margin [N].
        labels: int64 [N], in 0..K-1.
        k: below K.
        alpha: margin.
        tau: temperature; None for the hard loss.
        threshold: of the fall-back to the hard loss; 0 for none.
    """
    if torch.compiler.is_compiling() or k > MOST_PLACES or not labels.is_contiguous() or not len(labels):
        return None
    if not is_plain(logits, target) or not labels.is_cpu or _function() is None:
        return None
    apart = 0.0 if tau is None or not threshold else k * tau * math.log(threshold)
    losses: Tensor = _TopK.apply(logits, target, labels, k, alpha, 1.0 if tau is None else tau, apart, tau is not None)
    return losses


class _TopK(torch.autograd.Function):
    """See :func:`topk_losses`. The gradients are made with the values."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, target: Tensor, labels: Tensor, k: int, alpha: float, tau: float, apart: float, smooth: bool
    ) -> Tensor:  # fmt: skip
        function = _function()
        assert function is not None
        samples, classes = logits.shape
        by_logits, of_samples = torch.empty_like(logits), logits.new_empty(2, samples)
        function(ctypes.byref(_Arguments(
            samples, classes, logits.data_ptr(), target.data_ptr(), labels.data_ptr(), tau, alpha, apart, k, smooth,
            threads_for(logits.numel()), of_samples.data_ptr(), of_samples.data_ptr() + 4 * samples, by_logits.data_ptr(),
        )))  # fmt: skip
        ctx.save_for_backward(by_logits, of_samples[1])
        return of_samples[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_logits, by_target = ctx.saved_tensors
        return by_logits * grad[:, None], by_target * grad, *(None,) * 6


class _Arguments(ctypes.Structure):
    """``topk`` of topk.c."""

    _fields_ = (
        ("n", ctypes.c_int64), ("c", ctypes.c_int64), ("z", ctypes.c_void_p), ("target", ctypes.c_void_p),
        ("label", ctypes.c_void_p), ("tau", ctypes.c_double), ("alpha", ctypes.c_double), ("apart", ctypes.c_double),
        ("k", ctypes.c_int32), ("smooth", ctypes.c_int32), ("threads", ctypes.c_int32), ("loss", ctypes.c_void_p),
        ("by_target", ctypes.c_void_p), ("by_z", ctypes.c_void_p),
    )  # fmt: skip


@functools.cache
def _function() -> Any | None:
    found = compiled(SOURCE, [HEADER])
    if found is None:
        return None
    function = found.pycls_topk
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function
