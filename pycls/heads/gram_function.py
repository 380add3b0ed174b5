"""Forward and backward of :func:`pycls.heads.gram.gram_scores`, by hand, class chunk by class chunk."""

from typing import Any

import torch
from torch import Tensor

from pycls.heads.form import CHUNK_ELEMENTS, LOGITS_ELEMENTS, TINY, Form


def chunks(num_classes: int, width: int, samples: int, chunk: int) -> list[tuple[int, int]]:
    """[low, high) of each chunk of classes with ``width`` numbers a class; what fits twice into the cache is not cut."""
    if chunk <= 0:
        chunk = min(CHUNK_ELEMENTS // max(width, 1), LOGITS_ELEMENTS // max(samples, 1))
        chunk = max(256, chunk)
        chunk = num_classes if num_classes <= 2 * chunk else chunk
    return [(low, min(low + chunk, num_classes)) for low in range(0, num_classes, chunk)]


class _Places:
    """Where the targets [N] are within the chunk [low, high) of K classes. Nothing here waits for the device."""

    def __init__(self, targets: Tensor, low: int, high: int, classes: int) -> None:
        self.column, self.there = targets[:, None], None
        if high - low < classes:
            self.there = (self.column >= low) & (self.column < high)
            self.column = (self.column - low).clamp_(0, high - low - 1)

    def read(self, values: Tensor, otherwise: Tensor) -> Tensor:
        """The targets' ``values`` [N, c], and ``otherwise`` [N] for those that are in another chunk."""
        found = values.gather(1, self.column)[:, 0]
        return found if self.there is None else torch.where(self.there[:, 0], found, otherwise)

    def put(self, values: Tensor, value: float) -> Tensor:
        """Writes ``value`` at the targets; returns what stood there, [N, 1], for :meth:`restore`."""
        old = values.gather(1, self.column)
        if self.there is None:
            values.scatter_(1, self.column, value)
        else:
            values.scatter_(1, self.column, torch.where(self.there, value, old))
        return old

    def restore(self, values: Tensor, old: Tensor) -> None:
        """Undoes :meth:`put`."""
        values.scatter_(1, self.column, old)

    def add(self, values: Tensor, added: Tensor) -> None:
        """Adds ``added`` [N] at the targets."""
        column = added[:, None]
        values.scatter_add_(1, self.column, column if self.there is None else torch.where(self.there, column, 0))


class _Chunk:
    """The classes [low, high) and how their measures and logits come from the features."""

    def __init__(
        self, low: int, high: int, x: Tensor, weight: Tensor, form: Form, row: Tensor | None, bias: Tensor | None,
        scale: Tensor | None, inverse: Tensor | None, picks: Tensor | None,
    ) -> None:  # fmt: skip
        self.low, self.high, self.x, self.form, self.row, self.scale = low, high, x, form, row, scale
        self.rows = slice(low * form.num_centers, high * form.num_centers)
        self.block = weight[self.rows]
        self.bias = None if bias is None else bias[low:high]
        self.inverse = None if inverse is None else inverse[self.rows]
        self.picks = None if picks is None else picks[:, low:high]

    def measures(self, out: Tensor, first: bool) -> Tensor:
        """u [N, c], in ``out``. The first time the prototypes' norms and the picked centres are stored, too."""
        centers = self.form.num_centers
        p = torch.mm(self.x, self.block.t(), out=out) if centers == 1 else torch.mm(self.x, self.block.t())
        if self.inverse is not None:
            if first:
                squares = torch.linalg.vector_norm(self.block, dim=1).square_()
                self.inverse.copy_(torch.where(squares > TINY, squares.rsqrt(), 0))
            p.mul_(self.inverse)
        elif self.form.columns == "square":
            p.add_(torch.linalg.vector_norm(self.block, dim=1).square_(), alpha=self.form.square)
        if self.picks is not None:
            best = p.view(len(p), -1, centers).max(dim=2)
            p = out.copy_(best.values)
            self.picks.copy_(best.indices)
        if self.bias is not None:
            p.add_(self.bias)
        if self.row is not None:
            p.add_(self.row[:, None])
        return p

    def logits(self, u: Tensor) -> Tensor:
        """z [N, c], in place of u."""
        z = self.form.link.apply_(u, self.scale)
        return u if z is u else u.copy_(z)

    def pull(self, grad: Tensor, z: Tensor, grad_x: Tensor | None, grad_weight: Tensor | None) -> None:
        """From the gradient by the measures [N, c] to those by x (added to) and by the prototypes (written)."""
        form, stretch = self.form, None  # [c]: the gradient's part along each prototype itself
        if form.columns == "unit":
            # d(p / |w|) / dw = x / |w| - u w / |w|^2
            along = grad * form.link.measure(z, self.scale)
            if self.picks is not None:
                along = _spread(along, self.picks, form.num_centers)
            assert self.inverse is not None
            stretch = along.sum(dim=0).mul_(self.inverse.square()).neg_()
        elif form.columns == "square":
            stretch = grad.sum(dim=0).mul_(2 * form.square)
        if self.picks is not None:
            grad = _spread(grad, self.picks, form.num_centers)
        if self.inverse is not None:
            grad = grad.mul_(self.inverse)
        if grad_x is not None:
            grad_x.addmm_(grad, self.block)
        if grad_weight is not None:
            torch.mm(grad.t(), self.x, out=grad_weight[self.rows])
            if stretch is not None:
                grad_weight[self.rows].addcmul_(self.block, stretch[:, None])


def _spread(values: Tensor, picks: Tensor, centers: int) -> Tensor:
    """[N, c] -> [N, c * centers], each value at the prototype that was picked."""
    spread = values.new_zeros(*values.shape, centers)
    return spread.scatter_(2, picks[:, :, None].long(), values[:, :, None]).flatten(1)


class Gram(torch.autograd.Function):
    """See :func:`pycls.heads.gram.gram_scores`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, row: Tensor | None, bias: Tensor | None, scale: Tensor | None,
        offset: Tensor | None, targets: Tensor | None, total: Tensor | None, form: Form, reduce: bool, norms: bool,
        chunk: int, keep: bool,
    ) -> tuple[Tensor | None, ...]:
        samples, classes = len(x), len(weight) // form.num_centers
        limits = chunks(classes, weight.shape[1] * form.num_centers, samples, chunk)
        z = x.new_empty(samples, classes) if keep else None
        buffer = None if keep else x.new_empty(samples, limits[0][1])
        inverse = x.new_empty(len(weight)) if form.columns == "unit" else None
        picks = x.new_zeros(samples, classes, dtype=torch.uint8) if form.num_centers > 1 else None
        label_sets = 0 if targets is None else targets.shape[1]
        measure = None if targets is None else x.new_empty(samples, label_sets)
        peak = x.new_full((samples, label_sets), torch.finfo(x.dtype).min) if reduce else None
        rival = peak if offset is None or peak is None else peak.clone()
        mass = x.new_zeros(samples, label_sets) if reduce else None
        sums = None if total is None else x.new_zeros(samples)
        hot = None
        for low, high in limits:
            part = _Chunk(low, high, x, weight, form, row, bias, scale, inverse, picks)
            u = part.measures(_view(z, buffer, low, high), first=True)
            for k in range(label_sets):
                assert targets is not None and measure is not None
                measure[:, k] = _Places(targets[:, k], low, high, classes).read(u, measure[:, k])
            logits = part.logits(u)
            if sums is not None and total is not None:
                sums += logits @ total[low:high]
            if targets is not None and peak is not None and rival is not None and mass is not None:
                shifted = logits if offset is None else logits + offset[low:high]
                for k in range(label_sets):
                    places = _Places(targets[:, k], low, high, classes)
                    old = places.put(shifted, -torch.inf)
                    top = torch.maximum(peak[:, k], shifted.amax(dim=1))
                    hot = (shifted - top[:, None]).exp_()
                    mass[:, k] = mass[:, k] * (peak[:, k] - top).exp() + hot.sum(dim=1)
                    peak[:, k] = top
                    places.restore(shifted, old)
                    if offset is not None and not keep:
                        old = places.put(logits, -torch.inf)
                        rival[:, k] = torch.maximum(rival[:, k], logits.amax(dim=1))
                        places.restore(logits, old)
        others = None
        if peak is not None and mass is not None:
            # with no other class at all the sum is empty: a finite stand-in for log 0 keeps the gradients finite
            others = torch.where(mass > 0, peak + mass.log(), torch.finfo(x.dtype).min / 4)
            ctx.mark_non_differentiable(rival)
        squared_norm = None
        if norms and targets is not None:
            squared_norm = torch.linalg.vector_norm(weight[targets], dim=2).square_()
        # one chunk and one label set: the exponentials are small enough to keep, and save the backward pass its own
        hot = hot if len(limits) == 1 and label_sets == 1 else None
        ctx.set_materialize_grads(False)
        ctx.form, ctx.limits = form, limits
        ctx.save_for_backward(x, weight, row, bias, scale, offset, targets, total, z, inverse, picks, others, mass, hot)
        return z, others, sums, measure, squared_norm, rival

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_others: Tensor | None, grad_total: Tensor | None,
        grad_measure: Tensor | None, grad_norm: Tensor | None, _: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x, weight, row, bias, scale, offset, targets, total, z, inverse, picks, others, mass, hot = ctx.saved_tensors
        form: Form = ctx.form
        classes = len(weight) // form.num_centers
        need_x, need_weight, need_row, need_bias, need_scale = ctx.needs_input_grad[:5]
        grad_x = torch.zeros_like(x) if need_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
        grad_row = x.new_zeros(len(x)) if need_row and row is not None else None
        grad_bias = torch.empty_like(bias) if need_bias and bias is not None else None
        grad_scale = x.new_zeros(()) if need_scale and scale is not None else None
        buffer = x.new_empty(len(x), ctx.limits[0][1]) if z is None else None
        with torch.autocast(x.device.type, enabled=False):
            for low, high in ctx.limits:
                part = _Chunk(low, high, x, weight, form, row, bias, scale, inverse, picks)
                logits = _view(z, buffer, low, high)
                if z is None:
                    logits = part.logits(part.measures(logits, first=False))
                grad = None if grad_z is None else grad_z[:, low:high].clone()
                if grad_others is not None:
                    share = _shares(logits, offset, targets, others, mass, hot, grad_others, low, high, classes)
                    grad = share if grad is None else grad.add_(share)
                if grad_total is not None:
                    spread = torch.outer(grad_total, total[low:high])
                    grad = spread if grad is None else grad.add_(spread)
                if grad is None:
                    grad = torch.zeros_like(logits)
                if grad_scale is not None:
                    grad_scale += (grad * logits).sum()
                grad = form.link.pull_(grad, logits, scale)
                if grad_measure is not None:
                    for k in range(targets.shape[1]):
                        _Places(targets[:, k], low, high, classes).add(grad, grad_measure[:, k])
                if grad_row is not None:
                    grad_row += grad.sum(dim=1)
                if grad_bias is not None:
                    grad_bias[low:high] = grad.sum(dim=0)
                part.pull(grad, logits, grad_x, grad_weight)
            if grad_norm is not None and grad_weight is not None:
                for k in range(targets.shape[1]):
                    rows = targets[:, k]
                    grad_weight.index_add_(0, rows, weight[rows] * (2 * grad_norm[:, k])[:, None])
        if grad_scale is not None:
            grad_scale /= scale
        return grad_x, grad_weight, grad_row, grad_bias, grad_scale, *(None,) * 8


def _view(z: Tensor | None, buffer: Tensor | None, low: int, high: int) -> Tensor:
    """Where a chunk's logits are: their columns of all logits, or the buffer that each chunk uses again."""
    if z is not None:
        return z[:, low:high]
    assert buffer is not None
    return buffer[:, : high - low]


def _shares(
    logits: Tensor, offset: Tensor | None, targets: Tensor, others: Tensor, mass: Tensor, hot: Tensor | None,
    grad_others: Tensor, low: int, high: int, classes: int,
) -> Tensor:  # fmt: skip
    """Gradient of the log-sum-exps by the chunk's logits [N, c]: each one's softmax, without the targets."""
    if hot is not None:
        return hot * (grad_others / mass.clamp(min=torch.finfo(mass.dtype).tiny))
    shifted = logits if offset is None else logits + offset[low:high]
    result = None
    for k in range(targets.shape[1]):
        share = (shifted - others[:, k, None]).clamp_(max=0).exp_()
        _Places(targets[:, k], low, high, classes).put(share, 0.0)
        share.mul_(grad_others[:, k, None])
        result = share if result is None else result.add_(share)
    assert result is not None
    return result
