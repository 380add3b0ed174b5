"""Forward and backward of :func:`pycls.heads.gram.gram_scores`, by hand, class chunk by class chunk."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pycls.heads.form import TINY, Form, float_products
from pycls.heads.gram_chunk import Chunk, Operands, Places, chunks


class Gram(torch.autograd.Function):
    """See :func:`pycls.heads.gram.gram_scores`. Of L label sets the results are L vectors [N] each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, length: Tensor | float | None,
        offset: Tensor | None, targets: Tensor | None, total: Tensor | None, form: Form, reduce: bool, norms: bool,
        chunk: int, keep: bool, absent: bool,
    ) -> tuple[Tensor | None, ...]:
        samples, classes = len(x), len(weight) // form.num_centers
        limits = chunks(classes, weight.shape[1] * form.num_centers, samples, chunk)
        z = x.new_empty(samples, classes) if keep else None
        buffer = None if keep else x.new_empty(samples, limits[0][1])
        inverse = x.new_empty(len(weight)) if form.kind == "cosine" else None
        picks = x.new_zeros(samples, classes, dtype=torch.uint8) if form.num_centers > 1 else None
        factor = row = None
        if length is not None:
            factor = torch.threshold_(torch.linalg.vector_norm(x, dim=1, keepdim=True), TINY**0.5, math.inf)
            factor = factor.reciprocal_().mul_(length)
            x = x * factor
        elif form.kind == "distance":
            row = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_().mul_(-form.rate).add_(form.constant)
        work = Operands(x, weight, form, bias, scale, row, inverse, picks)
        columns = _columns(targets)
        measure: list[Tensor | None] = [None] * len(columns)
        sums: list[list[Tensor]] = [[] for _ in columns]  # log-sum-exp [N, 1] of each label set's chunks
        rivals: list[list[Tensor]] = [[] for _ in columns]
        whole = None if total is None else x.new_zeros(samples)
        share = None
        for low, high in limits:
            part = Chunk(low, high, work)
            u = part.measures(_view(z, buffer, low, high), first=True)
            places = [Places(column, low, high, absent or len(limits) > 1) for column in columns]
            measure = [place.read(u, found) for place, found in zip(places, measure, strict=True)]
            logits = part.logits(u)
            if whole is not None and total is not None:
                whole += logits @ total[low:high]
            if not reduce:
                continue
            shifted = logits.contiguous() if offset is None else logits + offset[low:high]
            same = form.link.identity and offset is None
            for k, place in enumerate(places):
                old = place.put(shifted, -torch.inf, measure[k] if same else None)
                share, log_sum = _softmax(shifted)
                sums[k].append(log_sum)
                if shifted is logits or len(places) > 1:
                    place.restore(shifted, old)
                if not keep:
                    old = place.put(logits, -torch.inf)
                    rivals[k].append(logits.amax(dim=1, keepdim=True))
                    place.restore(logits, old)
        log_sums = [_joined(parts) for parts in sums if parts]
        others = [_merged(parts, classes) for parts in log_sums]
        rival = _joined(rivals[0]).amax(dim=1) if reduce and not keep else None
        if rival is not None:
            ctx.mark_non_differentiable(rival)
        norms_found = [_rows(weight, column).square_().sum(dim=1) for column in columns] if norms else []
        # one chunk and one label set: the softmax is small enough to keep, and saves the backward pass its own
        share = share if len(limits) == 1 and len(columns) == 1 else None
        ctx.set_materialize_grads(False)
        ctx.absent = absent
        ctx.form, ctx.limits, ctx.sets, ctx.length = form, limits, len(columns), length if isinstance(length, float) else None
        ctx.save_for_backward(
            x, weight, bias, scale, length if isinstance(length, Tensor) else None, factor, row, offset, targets, total, z,
            inverse, picks, share, *others, *([] if share is not None else log_sums),
        )  # fmt: skip
        return z, whole, rival, *others, *(m[:, 0] for m in measure if m is not None), *norms_found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_total: Tensor | None, _: Tensor | None, *by_sets: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (x, weight, bias, scale, length, factor, row, offset, targets, total, z, inverse, picks, share,
         *of_sums) = ctx.saved_tensors  # fmt: skip
        form: Form = ctx.form
        sets = ctx.sets
        others, log_sums = of_sums[:sets], of_sums[sets:]
        grad_others, grad_measure, grad_norms = _by_set(by_sets, sets, bool(others))
        need_x, need_weight, need_bias, need_scale, need_length = ctx.needs_input_grad[:5]
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias and bias is not None else None
        grad_scale = x.new_zeros(()) if need_scale and scale is not None else None
        along_x = x.new_zeros(len(x), 1) if factor is not None or row is not None else None
        buffer = x.new_empty(len(x), ctx.limits[0][1]) if z is None else None
        work = Operands(x, weight, form, bias, scale, row, inverse, picks)
        columns = _columns(targets)
        with float_products(x.device.type):
            for number, (low, high) in enumerate(ctx.limits):
                part = Chunk(low, high, work)
                logits = _view(z, buffer, low, high)
                if z is None:
                    logits = part.logits(part.measures(logits, first=False))
                places = [Places(column, low, high, ctx.absent or len(ctx.limits) > 1) for column in columns]
                grad = None if grad_z is None else grad_z[:, low:high].clone()
                if grad_others:
                    if share is not None:
                        by_sum = share * grad_others[0]
                    else:
                        weights = [(sums[:, number] - whole).exp_()[:, None] * by_whole for sums, whole, by_whole
                                   in zip(log_sums, others, grad_others, strict=True)]  # fmt: skip
                        shifted = logits.clone() if offset is None else logits + offset[low:high]
                        by_sum = _weighted_softmax(shifted, places, weights)
                    grad = by_sum if grad is None else grad.add_(by_sum)
                if grad_total is not None:
                    spread = torch.outer(grad_total, total[low:high])
                    grad = spread if grad is None else grad.add_(spread)
                if grad is None:
                    grad = torch.zeros_like(logits)
                if grad_scale is not None:
                    grad_scale += (grad * logits).sum()
                grad = form.link.pull_(grad, logits, scale)
                for place, added in zip(places, grad_measure, strict=False):
                    place.add(grad, added)
                if grad_bias is not None:
                    torch.sum(grad, dim=0, out=grad_bias[low:high])
                part.pull(grad, logits, grad_x, grad_weight, along_x)
            if grad_weight is not None:
                for column, by_square in zip(columns, grad_norms, strict=False):
                    grad_weight.index_add_(0, column[:, 0].clamp(min=0), _rows(weight, column).mul_(2 * by_square))
        if grad_scale is not None:
            grad_scale /= scale
        grad_length = None
        if factor is not None and along_x is not None:
            # d(s x / |x|) / dx = s / |x| - (s x / |x|) (s x / |x|)^T / (s |x|)
            size = ctx.length if length is None else length
            if need_length:
                grad_length = along_x.sum() / size
            if grad_x is not None:
                grad_x = grad_x.mul_(factor).addcmul_(x, along_x.mul_(factor).mul_(-1 / size**2))
        elif along_x is not None and grad_x is not None:
            grad_x.addcmul_(x, along_x, value=-2 * form.rate)
        return grad_x, grad_weight, grad_bias, grad_scale, grad_length, *(None,) * 9


def _by_set(by_sets: Sequence[Tensor | None], sets: int, reduced: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the L log-sum-exps, measures and squared norms, as columns [N, 1]; an empty list for none of a kind."""
    kinds: list[list[Tensor]] = []
    start = 0
    for there in (reduced, True, True):
        found = by_sets[start : start + sets] if there else []
        start += sets if there else 0
        some = next((grad for grad in found if grad is not None), None)
        kinds.append([] if some is None else [(torch.zeros_like(some) if g is None else g)[:, None] for g in found])
    return kinds[0], kinds[1], kinds[2]


def _view(z: Tensor | None, buffer: Tensor | None, low: int, high: int) -> Tensor:
    """Where a chunk's logits are: their columns of all logits, or the buffer that each chunk uses again."""
    if z is not None:
        return z if high - low == z.shape[1] else z[:, low:high]
    assert buffer is not None
    return buffer[:, : high - low]


def _columns(values: Tensor | None) -> list[Tensor]:
    """[N, L] as L columns [N, 1]."""
    if values is None:
        return []
    return [values] if values.shape[1] == 1 else list(values.split(1, dim=1))


def _rows(weight: Tensor, column: Tensor) -> Tensor:
    """The prototypes [N, D] of a column of targets, any one for -1; a copy."""
    return weight.index_select(0, column[:, 0].clamp(min=0))


def _joined(parts: list[Tensor]) -> Tensor:
    """Columns [N, 1] of the chunks, side by side."""
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _merged(log_sums: Tensor, classes: int) -> Tensor:
    """Log-sum-exp [N] of those of the chunks. Without any other class it is empty: a finite stand-in for log 0 keeps the
    gradients finite."""
    merged = log_sums.logsumexp(dim=1) if log_sums.shape[1] > 1 else log_sums[:, 0]
    return merged.clamp(min=torch.finfo(merged.dtype).min / 4) if classes == 1 else merged


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax [N, c] and log-sum-exp [N, 1] of z, where at most one of a row is -inf. One kernel makes the softmax; the
    largest share tells the sum: ``exp(max z - log sum)``."""
    if z.shape[1] == 1:
        return (z > -torch.inf).to(z.dtype), z.clone()
    share = torch.softmax(z, dim=1)
    return share, z.amax(dim=1, keepdim=True) - share.amax(dim=1, keepdim=True).log_()


def _weighted_softmax(shifted: Tensor, places: list[Places], weights: list[Tensor]) -> Tensor:
    """Sum over the label sets of ``weights`` [N, 1] times the softmax [N, c] of ``shifted`` without the set's targets."""
    result = None
    for k, place in enumerate(places):
        old = place.put(shifted, -torch.inf)
        share = _softmax(shifted)[0].mul_(weights[k])
        result = share if result is None else result.add_(share)
        if k + 1 < len(places):
            place.restore(shifted, old)
    assert result is not None
    return result
