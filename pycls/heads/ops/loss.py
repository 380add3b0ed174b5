"""From the targets' scores to the softmax loss: margin and criterion on [N] vectors, with their slopes, as one autograd node.

    v  = (u - shift) / factor            the cosine or squared distance behind the target's score u
    m  = margin(v)
    u' = factor m + shift,  z' = transform(u')                        the target's logit with its margin
    l  = criterion(z' + offset, log-sum-exp of the others, total)     the loss of a sample

What costs at few classes is not the arithmetic but autograd's walk over dozens of [N]-sized operations. Parts that give their
value and slope in closed form (``Margin.value_and_slope``, ``SoftmaxCriterion.value_and_grads``) therefore share one node.
A part that has only ``forward`` makes the same steps with autograd's own nodes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pycls.heads.ops.spec import LogitTransform

if TYPE_CHECKING:
    from pycls.heads.parts import Margin, SoftmaxCriterion, Target


class ClosedForm(torch.autograd.Function):
    """A function of [N] vectors and numbers (0-dim) that returns its value [N] and, for each, its derivative (None for 0)."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor | None, ...]], *inputs: Tensor | None) -> Tensor:  # type: ignore[override]
        value, *slopes = function(*inputs)
        ctx.numbers = [isinstance(given, Tensor) and given.ndim == 0 for given in inputs]
        ctx.save_for_backward(*slopes)
        assert value is not None
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by = [None if slope is None else grad * slope for slope in ctx.saved_tensors]
        return None, *(v.sum() if number and v is not None else v for v, number in zip(by, ctx.numbers, strict=True))


def transformed(score: Tensor, scale: Tensor | None, transform: LogitTransform) -> Tensor:
    """Logits [N] of scores [N], differentiable."""

    def closed_form(u: Tensor, s: Tensor | None) -> tuple[Tensor | None, ...]:
        z = transform.forward_(u.clone(), s)
        return z, transform.backward_(torch.ones_like(z), z, s), None if s is None else z / s

    if transform.is_identity:
        return score
    logits: Tensor = ClosedForm.apply(closed_form, score, scale)
    return logits


class TargetStep(NamedTuple):
    """What the loss of one label set is made of, beside the vectors that have gradients.

    Attributes:
        margin: None where there is none, or none acts.
        transform: score -> logit.
        target: what else is known of the targets.
        labels: int64 [N], clamped to 0 where there is no target.
        num_classes: K.
        strength: 0-dim, how much of the margin there is; None for all of it.
        share: of each sample in the mean: [N], or a number for all.
        offset: [N], added to the target's logit inside the criterion, or None.
        class_weight: [N], weight of the target's logit in ``total``; None for 1.
    """

    margin: "Margin | None"
    transform: LogitTransform
    target: "Target"
    labels: Tensor
    num_classes: int
    strength: Tensor | None
    share: Tensor | float = 1.0
    offset: Tensor | None = None
    class_weight: Tensor | None = None


def margin_softmax(
    step: TargetStep, criterion: "SoftmaxCriterion", score: Tensor, others: Tensor, total: Tensor | None,
    scale: Tensor | None, factor: Tensor | float, shift: Tensor | float,
) -> Tensor:  # fmt: skip
    """The mean loss of a label set, a scalar; differentiable by every vector and by the parameters of margin and criterion.

    Args:
        step: everything else.
        criterion: logits -> loss.
        score: u of the targets, [N].
        others: log-sum-exp of the other classes' logits, [N].
        total: (weighted) sum of all logits, without margin, [N]; or None.
        scale: 0-dim, of the logit transform, or None.
        factor: see above; a number, 0-dim or [N].
        shift: see above; a number or [N].
    """
    if criterion.is_closed_form and (step.margin is None or step.margin.is_closed_form):
        loss: Tensor = MarginSoftmax.apply(step, criterion, score, others, total, scale, factor, shift)
        return loss
    logit = moved_logit(step, score, scale, factor, shift)
    if total is not None and step.margin is not None:
        gained = logit - transformed(score, scale, step.transform)
        total = total + (gained if step.class_weight is None else gained * step.class_weight)
    if step.offset is not None:
        logit = logit + step.offset
    losses: Tensor = criterion(logit, others, total, step.labels, step.num_classes)
    return losses.sum() * step.share if isinstance(step.share, float) else torch.dot(losses, step.share)


def moved_logit(
    step: TargetStep, score: Tensor, scale: Tensor | None, factor: Tensor | float, shift: Tensor | float
) -> Tensor:
    """The targets' logits [N] with their margin, differentiable."""
    if step.margin is None:
        return transformed(score, scale, step.transform)
    value = _added(score, shift, -1) / factor
    moved = step.margin(value, step.labels, step.target)
    if step.strength is not None:
        moved = torch.lerp(value, moved, step.strength)
    return transformed(_added(factor * moved, shift, 1), scale, step.transform)


class MarginSoftmax(torch.autograd.Function):
    """See :func:`margin_softmax`: value and slopes together, so that the backward pass is a few multiplications."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, step: TargetStep, criterion: "SoftmaxCriterion", score: Tensor, others: Tensor, total: Tensor | None,
        scale: Tensor | None, factor: Tensor | float, shift: Tensor | float,
    ) -> Tensor:  # fmt: skip
        margin, transform, share = step.margin, step.transform, step.share
        moved = score
        if margin is not None:
            value = _added(score, shift, -1) / factor
            moved_value, slope = margin.value_and_slope(value, step.labels, step.target)
            if step.strength is not None:
                moved_value = torch.lerp(value, moved_value, step.strength)
                slope = 1 + step.strength * (slope - 1)
            moved = _added(factor * moved_value, shift, 1)
        logit = _logit(moved, scale, transform)
        if total is not None and margin is not None:
            plain = _logit(score, scale, transform)
            gained = logit - plain if step.class_weight is None else (logit - plain) * step.class_weight
            total = total + gained
        shifted = logit if step.offset is None else logit + step.offset
        losses, by_logit, by_others, by_total = criterion.value_and_grads(
            shifted, others, total, step.labels, step.num_classes
        )
        loss = losses.sum() * share if isinstance(share, float) else torch.dot(losses, share)
        if not any(ctx.needs_input_grad):
            return loss
        by_logit, by_others = by_logit * share, by_others * share
        by_total = None if by_total is None else by_total * share
        by_score = by_scale = by_factor = by_shift = None
        if by_total is not None and margin is not None:  # total has the target's logit without margin, which is taken out
            by_plain = by_total if step.class_weight is None else by_total * step.class_weight
            by_logit = by_logit + by_plain
            by_score, by_scale = _transform_grads(-by_plain, plain, scale, transform)
        by_moved, of_scale = _transform_grads(by_logit, logit, scale, transform)
        by_scale = of_scale if by_scale is None or of_scale is None else by_scale + of_scale
        direct = by_moved
        if margin is not None:
            direct = by_moved * slope
            if ctx.needs_input_grad[6]:
                by_factor = by_moved * (moved_value - slope * value)
            if ctx.needs_input_grad[7]:
                by_shift = by_moved - direct
        by_score = direct if by_score is None else by_score + direct
        ctx.sum_factor = isinstance(factor, Tensor) and factor.ndim == 0
        ctx.save_for_backward(by_score, by_others, by_total, by_scale, by_factor, by_shift)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by = [None if slope is None else grad * slope for slope in ctx.saved_tensors]
        if ctx.sum_factor and by[4] is not None:
            by[4] = by[4].sum()
        return None, None, *by


def _added(values: Tensor, shift: Tensor | float, sign: int) -> Tensor:
    return values if isinstance(shift, float) and shift == 0 else values + sign * shift


def _logit(score: Tensor, scale: Tensor | None, transform: LogitTransform) -> Tensor:
    return score if transform.is_identity else transform.forward_(score.clone(), scale)


def _transform_grads(
    by_logit: Tensor, logit: Tensor, scale: Tensor | None, transform: LogitTransform
) -> tuple[Tensor, Tensor | None]:
    """Gradients by the scores [N] and by the transform's scale."""
    if transform.is_identity:
        return by_logit, None
    by_scale = None if scale is None else (by_logit * logit).sum() / scale
    return transform.backward_(by_logit.clone(), logit, scale), by_scale
