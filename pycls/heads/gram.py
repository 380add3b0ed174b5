"""The one expensive step of every head: features against all prototypes, forward and backward.

Every similarity here is a function of the product ``p = x . w`` and of the squared norms of ``x`` and ``w``, in three
steps:

    p [N, K] = x W^T                                     x [N, D] already carries what depends on x alone
    u        = p,  p / |w|,  or  p + c |w|^2             (+ bias [K]) (+ row [N]): the measure
    z        = link(u), such as u itself or exp(u)       the logits

What depends on x alone (its normalisation, a scale, ``|x|^2``) is left to autograd, outside: that costs O(ND). What has
the size of W or of the logits is done here by hand, class chunk by class chunk while the chunk is in the cache, so that
neither a normalised copy of W nor any [N, K, D] or autograd's chain of [N, K] arrays ever exists.

Softmax losses need three numbers a sample and no more: the target's measure, the log-sum-exp over the *other* classes
and, for label smoothing, the sum of the logits. Those come out of the same pass as [N] vectors; margins, criteria and
learned scales act on these vectors by plain autograd. Keeping the target out of the sum, and not subtracting it
afterwards, is what keeps a margin exact when the target dominates.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Elements of W in an automatic chunk: 4 MB of float32, which stays in the cache between the chunk's passes."""

TINY = 1e-24
"""Squared norm under which a vector counts as zero: its cosine with anything is 0, and so is the gradient."""


class Link:
    """u -> z elementwise; this one is the identity. ``scale`` is a 0-dim tensor that multiplies the result, or None."""

    def apply_(self, u: Tensor, scale: Tensor | None) -> Tensor:
        """The logits of measures ``u``; may overwrite ``u``."""
        return u

    def pull_(self, grad: Tensor, z: Tensor, scale: Tensor | None) -> Tensor:
        """Gradient by u from the gradient by z, given z; may overwrite ``grad``."""
        return grad

    def measure(self, z: Tensor, scale: Tensor | None) -> Tensor:
        """u from z, for links used with ``columns="unit"``."""
        return z


@dataclass(frozen=True)
class Form:
    """Which member of the family a similarity is.

    Attributes:
        columns: ``"plain"`` u = p, ``"unit"`` u = p / |w|, ``"square"`` u = p + square |w|^2.
        square: the coefficient c of ``"square"``.
        link: the function u -> z.
        num_centers: prototypes a class; the measure of a class is the largest of its prototypes'.
    """

    columns: Literal["plain", "unit", "square"] = "plain"
    square: float = 0.0
    link: Link = field(default_factory=Link)
    num_centers: int = 1


class Scores(NamedTuple):
    """What one pass over the prototypes gives. L is the number of label sets (2 for a mixture); None if not asked for.

    Attributes:
        logits: [N, K].
        others: [N, L], log-sum-exp of the logits (plus ``offset``) over the classes that are not the target.
        total: [N], (weighted) sum of the logits over all classes.
        measure: [N, L], u of the target.
        squared_norm: [N, L], |w|^2 of the target's prototype.
    """

    logits: Tensor
    others: Tensor | None
    total: Tensor | None
    measure: Tensor | None
    squared_norm: Tensor | None


def gram_scores(
    x: Tensor,
    weight: Tensor,
    form: Form,
    *,
    row: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    targets: Tensor | None = None,
    reduce: bool = False,
    total: bool | Tensor = False,
    norms: bool = False,
    chunk: int = 0,
) -> Scores:
    """Scores of features x [N, D] against prototypes ``weight`` [K * num_centers, D], differentiable once.

    Args:
        x: features, with everything that depends on them alone applied.
        weight: the prototypes, those of a class in adjacent rows.
        form: the similarity.
        row: [N], added to the measures of a sample.
        bias: [K], added to the measures of a class.
        scale: 0-dim, handed to the link.
        offset: [K], added to the logits inside ``others`` only (logit adjustment); no gradient.
        targets: int64 [N, L]; negative means no target.
        reduce: whether ``others`` is wanted.
        total: whether ``total`` is wanted; weights [K] for a weighted sum.
        norms: whether ``squared_norm`` is wanted (``columns="plain"`` and one centre a class).
        chunk: classes a chunk; 0 chooses.
    """
    weights = total if isinstance(total, Tensor) else weight.new_ones(len(weight) // form.num_centers) if total else None
    return Scores(*_Gram.apply(x, weight, row, bias, scale, offset, targets, weights, form, reduce, norms, chunk))


def _chunks(num_classes: int, width: int, chunk: int) -> list[tuple[int, int]]:
    """[low, high) of each chunk; what fits twice into the cache is not cut."""
    if chunk <= 0:
        chunk = max(256, CHUNK_ELEMENTS // max(width, 1))
        chunk = num_classes if num_classes <= 2 * chunk else chunk
    return [(low, min(low + chunk, num_classes)) for low in range(0, num_classes, chunk)]


def _inside(targets: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Index of each target within the chunk (clamped) and whether it is there. No host synchronisation."""
    return (targets - low).clamp_(0, high - low - 1), (targets >= low) & (targets < high)


def _put(values: Tensor, index: Tensor, there: Tensor, value: Tensor | float) -> Tensor:
    """Writes ``value`` at ``index`` [N] of each row where ``there``; returns what stood there, [N, 1]."""
    column = index[:, None]
    old = values.gather(1, column)
    new = torch.where(there[:, None], value[:, None] if isinstance(value, Tensor) else value, old)
    values.scatter_(1, column, new)
    return old


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, row: Tensor | None, bias: Tensor | None, scale: Tensor | None,
        offset: Tensor | None, targets: Tensor | None, total: Tensor | None, form: Form, reduce: bool, norms: bool, chunk: int,
    ) -> tuple[Tensor | None, ...]:
        samples, centers = len(x), form.num_centers
        classes = len(weight) // centers
        chunks = _chunks(classes, weight.shape[1] * centers, chunk)
        z = x.new_empty(samples, classes)
        inverse = weight.new_empty(len(weight)) if form.columns == "unit" else None
        picks = torch.zeros(samples, classes, dtype=torch.uint8, device=x.device) if centers > 1 else None
        label_sets = 0 if targets is None else targets.shape[1]
        measure = None if targets is None else x.new_zeros(samples, label_sets)
        peak = x.new_full((samples, label_sets), torch.finfo(x.dtype).min) if reduce else None
        mass = x.new_zeros(samples, label_sets) if reduce else None
        hot = None
        for low, high in chunks:
            u = z[:, low:high]
            block = weight[low * centers : high * centers]
            if centers == 1:
                torch.mm(x, block.t(), out=u)
            p = u if centers == 1 else torch.mm(x, block.t())
            if inverse is not None:
                squares = torch.linalg.vector_norm(block, dim=1).square_()
                inverse[low * centers : high * centers] = torch.where(squares > TINY, squares.rsqrt(), 0)
                p.mul_(inverse[low * centers : high * centers])
            elif form.columns == "square":
                p.add_(torch.linalg.vector_norm(block, dim=1).square_(), alpha=form.square)
            if picks is not None:
                best = p.view(samples, high - low, centers).max(dim=2)
                u.copy_(best.values)
                picks[:, low:high] = best.indices
            if bias is not None:
                u.add_(bias[low:high])
            if row is not None:
                u.add_(row[:, None])
            if targets is not None and measure is not None:
                for k in range(label_sets):
                    index, there = _inside(targets[:, k], low, high)
                    found = u.gather(1, index[:, None])[:, 0]
                    measure[:, k] = torch.where(there, found, measure[:, k])
            linked = form.link.apply_(u, scale)
            if linked is not u:
                u.copy_(linked)
            if reduce and targets is not None and peak is not None and mass is not None:
                shifted = u if offset is None else u + offset[low:high]
                for k in range(label_sets):
                    index, there = _inside(targets[:, k], low, high)
                    old = _put(shifted, index, there, -torch.inf)
                    top = torch.maximum(peak[:, k], shifted.amax(dim=1))
                    hot = (shifted - top[:, None]).exp_()
                    mass[:, k] = mass[:, k] * (peak[:, k] - top).exp() + hot.sum(dim=1)
                    peak[:, k] = top
                    shifted.scatter_(1, index[:, None], old)
        others = None
        if peak is not None and mass is not None:
            # with no other class at all the sum is empty: a finite stand-in for log 0 keeps the gradients finite
            others = torch.where(mass > 0, peak + mass.log(), torch.finfo(x.dtype).min / 4)
        squared_norm = None
        if norms and targets is not None:
            squared_norm = torch.linalg.vector_norm(weight[targets.clamp(min=0)], dim=2).square_()
        # one chunk and one label set: the exponentials are small enough to keep, and save the backward pass its own
        hot = hot if len(chunks) == 1 and label_sets == 1 else None
        ctx.set_materialize_grads(False)
        ctx.form, ctx.chunks = form, chunks
        ctx.has_row, ctx.has_bias = row is not None, bias is not None
        ctx.save_for_backward(x, weight, scale, offset, targets, total, z, inverse, picks, others, mass, hot)
        return z, others, None if total is None else z @ total, measure, squared_norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_others: Tensor | None, grad_total: Tensor | None,
        grad_measure: Tensor | None, grad_norm: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x, weight, scale, offset, targets, total, z, inverse, picks, others, mass, hot = ctx.saved_tensors
        form: Form = ctx.form
        need_x, need_weight, need_row, need_bias, need_scale = ctx.needs_input_grad[:5]
        grad_x = torch.zeros_like(x) if need_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
        grad_row = x.new_zeros(len(x)) if need_row and ctx.has_row else None
        grad_bias = x.new_empty(z.shape[1]) if need_bias and ctx.has_bias else None
        grad_scale = x.new_zeros(()) if need_scale and scale is not None else None
        with torch.autocast(x.device.type, enabled=False):
            for low, high in ctx.chunks:
                part = z[:, low:high]
                grad = None if grad_z is None else grad_z[:, low:high].clone()
                if grad_others is not None:
                    for k in range(targets.shape[1]):
                        index, there = _inside(targets[:, k], low, high)
                        if hot is not None:
                            share = hot * (grad_others[:, k] / mass[:, k].clamp(min=torch.finfo(x.dtype).tiny))[:, None]
                        else:
                            shifted = part if offset is None else part + offset[low:high]
                            share = (shifted - others[:, k, None]).clamp_(max=0).exp_()
                            _put(share, index, there, 0.0)
                            share.mul_(grad_others[:, k, None])
                        grad = share if grad is None else grad.add_(share)
                if grad_total is not None:
                    spread = torch.outer(grad_total, total[low:high])
                    grad = spread if grad is None else grad.add_(spread)
                if grad is None:
                    grad = torch.zeros_like(part)
                if grad_scale is not None:
                    grad_scale += (grad * part).sum()
                grad = form.link.pull_(grad, part, scale)
                if grad_measure is not None:
                    for k in range(targets.shape[1]):
                        index, there = _inside(targets[:, k], low, high)
                        grad.scatter_add_(1, index[:, None], torch.where(there, grad_measure[:, k], 0)[:, None])
                if grad_row is not None:
                    grad_row += grad.sum(dim=1)
                if grad_bias is not None:
                    grad_bias[low:high] = grad.sum(dim=0)
                _pull_products(grad, part, x, weight, form, scale, inverse, picks, low, high, grad_x, grad_weight)
            if grad_norm is not None and grad_weight is not None:
                for k in range(targets.shape[1]):
                    rows = targets[:, k].clamp(min=0)
                    grad_weight.index_add_(0, rows, weight[rows] * (2 * grad_norm[:, k])[:, None])
        if grad_scale is not None:
            grad_scale /= scale
        return grad_x, grad_weight, grad_row, grad_bias, grad_scale, None, None, None, None, None, None, None


def _pull_products(
    grad: Tensor, z: Tensor, x: Tensor, weight: Tensor, form: Form, scale: Tensor | None, inverse: Tensor | None,
    picks: Tensor | None, low: int, high: int, grad_x: Tensor | None, grad_weight: Tensor | None,
) -> None:
    """From the gradient by a chunk's measures [N, c] to those by x (added to) and by the chunk's prototypes (written)."""
    centers = form.num_centers
    rows = slice(low * centers, high * centers)
    block = weight[rows]
    stretch = None  # [c]: the gradient's part along each prototype itself
    if form.columns == "unit":
        # d(p / |w|) / dw = x / |w| - u w / |w|^2
        along = grad * form.link.measure(z, scale)
        if picks is not None:
            along = _spread(along, picks[:, low:high], centers)
        assert inverse is not None
        stretch = along.sum(dim=0).mul_(inverse[rows].square()).neg_()
    elif form.columns == "square":
        stretch = grad.sum(dim=0).mul_(2 * form.square)
    if picks is not None:
        grad = _spread(grad, picks[:, low:high], centers)
    if inverse is not None:
        grad = grad.mul_(inverse[rows])
    if grad_x is not None:
        grad_x.addmm_(grad, block)
    if grad_weight is not None:
        torch.mm(grad.t(), x, out=grad_weight[rows])
        if stretch is not None:
            grad_weight[rows].addcmul_(block, stretch[:, None])


def _spread(values: Tensor, picks: Tensor, centers: int) -> Tensor:
    """[N, c] -> [N, c * centers], each value at the prototype that was picked."""
    spread = values.new_zeros(*values.shape, centers)
    return spread.scatter_(2, picks[:, :, None].long(), values[:, :, None]).flatten(1)
