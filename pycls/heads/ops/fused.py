"""Scores of features against all classes, forward and backward, class chunk by class chunk.

Every similarity here is a function of the product ``p = x . w`` and of the squared norms of ``x`` and ``w``, in three steps:

    p [N, K] = x W^T                                      x [N, D], or s x / |x|
    u        = p,  p / |w|,  or  c - r (|x|^2 - 2 p + |w|^2)     (+ bias [K]): the score
    z        = transform(u), such as u itself or exp(u)   the logit

All of it, the normalisation of the features included, is differentiated by hand while a chunk of classes is in the cache, so
that neither a normalised copy of W nor any [N, K, D] or autograd's chain of [N, K] arrays ever exists.

A softmax loss needs three numbers a sample and no more: the target's score, the log-sum-exp over the *other* classes and, for
label smoothing, the sum of the logits. Those come out of the same pass as [N] vectors; ``loss.py`` goes on from them. Keeping
the target out of the sum, and not subtracting it afterwards, is what keeps a margin exact when the target dominates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycls.heads.ops import torch_backend
from pycls.heads.ops.backend import Backend, Chunk, Gradients, Operands, ScoreGrads, SoftmaxStats, select
from pycls.heads.ops.chunks import aligned, chunks
from pycls.heads.ops.derived_weight import DerivedWeight, PrototypeChunks, Prototypes
from pycls.heads.ops.products import float_products, sum_type
from pycls.heads.ops.spec import ScoreSpec

KEPT_ELEMENTS, KEPT_ELEMENTS_CUDA = 1 << 30, 1 << 28
"""Logits kept for the backward pass at the most on a processor (4 GB) and on CUDA (1 GB). More are recomputed chunk by chunk: a
fourth product, and no memory that grows with K. On CUDA that product, in half precision, should take about as long as writing
and reading the logits (at 512 features; estimated for an H100, not measured)."""


class Ranking(NamedTuple):
    """How the classes' logits [K] lie to a sample's target; each [N].

    Attributes:
        before: int64, how many classes stand before the target; a tie is before it.
        nll: ``-log softmax`` of the target's logit.
        confidence: the largest probability.
        rival: int64, the highest class that is not the target.
    """

    before: Tensor
    nll: Tensor
    confidence: Tensor
    rival: Tensor


class Scores(NamedTuple):
    """What one pass over the prototypes gives. L is the number of label sets (2 for a mixture). None or empty: not asked for.

    Attributes:
        logits: [N, K]; None where they are recomputed in the backward pass.
        total: [N], (weighted) sum of the logits over all classes.
        max_other_logit: [N], the largest logit (without ``offset``) of the first label set's other classes, where the logits
            are not kept; no gradient.
        others_logsumexp: L times [N], of the logits (plus ``offset``) over the classes that are not the target.
        score: L times [N], u of the target.
        squared_norm: L times [N], |w|^2 of the target's prototype.
        log_determinant: L times [N], of the target's covariance, for a similarity that has one.
        ranking: where the classes are sharded over processes, in evaluation.
    """

    logits: Tensor | None
    total: Tensor | None = None
    max_other_logit: Tensor | None = None
    others_logsumexp: tuple[Tensor, ...] = ()
    score: tuple[Tensor, ...] = ()
    squared_norm: tuple[Tensor, ...] = ()
    log_determinant: tuple[Tensor, ...] = ()
    ranking: Ranking | None = None


def class_scores(
    x: Tensor,
    prototypes: Prototypes | DerivedWeight,
    spec: ScoreSpec,
    *,
    target_norm: Tensor | float | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    targets: Tensor | None = None,
    reduce: bool = False,
    total: bool | Tensor = False,
    squared_norms: bool = False,
    chunk: int = 0,
    absent: bool = False,
    products: torch.dtype | None = None,
) -> Scores:
    """Scores of features x [N, D] against the prototypes of K classes, differentiable once.

    Args:
        prototypes: the prototypes, or how they are derived.
        spec: the similarity.
        target_norm: the norm that the features are given first, a number or a 0-dim tensor; None to leave them as they are.
        scale: 0-dim, of the logit transform.
        offset: [K], added to the logits inside ``others_logsumexp`` only (logit adjustment); no gradient.
        targets: int64 [N, L], each in 0..K-1; where there is none, any, with no gradient from what comes of it.
        reduce: whether ``others_logsumexp`` is wanted.
        total: whether ``total`` is wanted; weights [K] for a weighted sum.
        squared_norms: whether ``squared_norm`` is wanted (of one centre a class).
        chunk: classes a chunk; 0 chooses. With a number, or more than ``KEPT_ELEMENTS`` logits, ``reduce`` keeps no logits.
        absent: whether targets may be classes of another process, given as -1: their scores and norms mean nothing, and
            ``others_logsumexp`` is over all classes here.
        products: bfloat16 or float16, to which x and the prototypes are rounded for their products (``products.py``), or None.
    """
    if isinstance(prototypes, DerivedWeight) and (
        squared_norms or torch.compiler.is_compiling()  # a compiled graph has all prototypes at once
        or len(chunks(len(prototypes.inputs[0]), spec.num_centers, x, chunk)) == 1  # else they would be derived twice
    ):  # fmt: skip
        prototypes = prototypes.materialize()
    if target_norm is not None and spec.kind == "distance":
        products = None  # in half precision it is the products that are normalised, not the features
    if targets is None and torch.compiler.is_exporting():
        return Scores(torch_backend.exported_logits(x, prototypes.materialize(), spec, scale, target_norm))
    if isinstance(prototypes, DerivedWeight):
        classes, derived, inputs = len(prototypes.inputs[0]), type(prototypes), prototypes.inputs
        weight = bias = determinants = None
    else:
        (weight, bias, determinants), derived, inputs = prototypes, None, ()
        classes = weight.size(0) // spec.num_centers
    most = KEPT_ELEMENTS_CUDA if x.is_cuda else KEPT_ELEMENTS
    keep = not (reduce and (chunk > 0 or x.size(0) * classes > most) and torch.is_grad_enabled())
    weights = total if isinstance(total, Tensor) else x.new_ones(classes) if total else None
    logits, summed, max_other, all_determinants, *per_set = FusedScores.apply(
        x, weight, bias, scale, target_norm, offset, targets, weights, spec, reduce, squared_norms, chunk, keep, products,
        derived, *inputs,
    )  # fmt: skip
    determinants = all_determinants if determinants is None else determinants
    columns = () if targets is None else targets.unbind(dim=1)
    sets = len(columns)
    others, per_target = (tuple(per_set[:sets]), per_set[sets:]) if reduce else ((), per_set)
    known = [] if determinants is None else [determinants[c.clamp(min=0) if absent else c] for c in columns]
    return Scores(logits, summed, max_other, others, tuple(per_target[:sets]), tuple(per_target[sets:]), tuple(known))


TENSORS = 15  # inputs of FusedScores before those that its prototypes derive from


class FusedScores(torch.autograd.Function):
    """See :func:`class_scores`. Of L label sets the results are L vectors [N] each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None,
        target_norm: Tensor | float | None, offset: Tensor | None, targets: Tensor | None, total_weights: Tensor | None,
        spec: ScoreSpec, reduce: bool, squared_norms: bool, chunk: int, keep: bool, products: torch.dtype | None,
        derived: type[DerivedWeight] | None, *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        samples = x.size(0)
        classes = inputs[0].size(0) if weight is None else weight.size(0) // spec.num_centers
        limits = chunks(classes, spec.num_centers, x, chunk)
        if products is not None:
            x = x.to(products, memory_format=torch.contiguous_format)
            weight = None if weight is None else weight.to(products, memory_format=torch.contiguous_format)
        kind, columns = sum_type(x), _columns(targets)
        source = PrototypeChunks(weight, bias, derived, inputs, spec.num_centers, x.dtype)
        prototypes = source.take(*limits[0])
        backend = select(spec, columns, prototypes.bias, x, prototypes.rows, offset, total_weights).backend
        operands = _operands(backend, x, spec, scale, target_norm, classes)
        z = x.new_empty(samples, classes, dtype=kind) if keep else None
        buffer = None if keep else x.new_empty(samples, aligned(limits[0][1]), dtype=kind)
        scores = [x.new_zeros(samples, dtype=kind) for _ in columns]
        summed = None if total_weights is None else x.new_zeros(samples, dtype=kind)
        stats: list[list[SoftmaxStats]] = []  # of the chunks
        max_others, determinants = [], []
        for low, high in limits:
            prototypes = prototypes if low == 0 else source.take(low, high)
            if prototypes.log_determinants is not None:
                determinants.append(prototypes.log_determinants)
            logits = _view(z, buffer, low, high)
            max_other = x.new_empty(samples, dtype=kind) if reduce and not keep else None
            stats.append(backend.forward(Chunk(low, prototypes, operands), logits, columns, offset, scores, reduce, max_other,
                                         keep or summed is not None))  # fmt: skip
            if summed is not None and total_weights is not None:
                summed += logits @ total_weights[low:high]
            if max_other is not None:
                max_others.append(max_other)
        merged = [_merged(list(of_set), classes) for of_set in zip(*stats, strict=True)]
        max_other = torch.stack(max_others).amax(dim=0) if max_others else None
        if max_other is not None:
            ctx.mark_non_differentiable(max_other)
        squares = [] if weight is None or not squared_norms else [backend.target_squares(weight, c) for c in columns]
        ctx.set_materialize_grads(False)
        ctx.spec, ctx.limits, ctx.backend, ctx.derived, ctx.sets = spec, limits, backend, derived, len(columns)
        ctx.target_norm = None if isinstance(target_norm, Tensor) else target_norm
        ctx.save_for_backward(
            operands.x, weight, bias, scale, target_norm if isinstance(target_norm, Tensor) else None, operands.norm_factor,
            operands.row, offset, targets, total_weights, z, operands.inverse_norms, operands.center_index, *inputs,
            *(value for found in merged for value in found[:2]),
        )  # fmt: skip
        per_class = torch.cat(determinants) if determinants else None
        return z, summed, max_other, per_class, *(found.logsumexp for found in merged), *scores, *squares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_total: Tensor | None, _: None, grad_determinants: Tensor | None,
        *per_set: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        (x, weight, bias, scale, norm, factor, row, offset, targets, total_weights, z, inverse, center_index,
         *rest) = ctx.saved_tensors  # fmt: skip
        (need_x, *needs, need_scale, need_norm), need_inputs = ctx.needs_input_grad[:5], ctx.needs_input_grad[TENSORS:]
        inputs, saved_stats = rest[: len(need_inputs)], rest[len(need_inputs) :]
        spec, kind, columns = ctx.spec, sum_type(x), _columns(targets)
        stats = [SoftmaxStats(top, sums, sums) for top, sums in zip(saved_stats[::2], saved_stats[1::2], strict=True)]
        by_others, by_scores, by_squares = _by_set(per_set, ctx.sets, bool(stats))
        by = ScoreGrads(by_others, by_scores, grad_total, total_weights, grad_z)
        source = PrototypeChunks(weight, bias, ctx.derived, inputs, spec.num_centers, x.dtype, (*needs, *need_inputs))
        cosine = spec.kind == "cosine"
        need_x = need_x or (need_norm and not cosine)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format, dtype=kind) if need_x else None
        grad_scale = x.new_zeros((), dtype=kind) if need_scale and scale is not None else None
        along_x = x.new_zeros(x.size(0), 1, dtype=kind) if row is not None or (factor is not None and cosine) else None
        buffer = x.new_empty(len(x), aligned(ctx.limits[0][1]), dtype=kind) if z is None else None
        operands = Operands(x, spec, scale, row, factor, inverse, center_index)
        # the kernels go from a softmax's gradients to those by the scores; gradients by single logits are the reference's
        backend = ctx.backend if grad_z is None and by_others else torch_backend.BACKEND
        with float_products(x):
            for low, high in ctx.limits:
                chunk = Chunk(low, source.take(low, high), operands)
                grads = Gradients(grad_x, *source.gradients(), grad_scale, along_x)
                backend.backward(chunk, _view(z, buffer, low, high), columns, offset, stats, by, grads, z is None)
                source.backward(grad_determinants)
            if source.grad_weight is not None:
                for column, by_square in zip(columns, by_squares, strict=False):
                    backend.add_target_squares_grad_(source.grad_weight, weight, column, by_square)
        if grad_scale is not None:
            grad_scale /= scale
        grad_norm = None
        if row is not None and grad_x is not None and along_x is not None:
            backend.add_rows_(grad_x, x, -2 * spec.rate, along_x)
        if factor is not None:
            target_norm = ctx.target_norm if norm is None else norm
            if not cosine and grad_x is not None:
                along_x = (grad_x * x).sum(dim=1, keepdim=True)
            if need_norm and along_x is not None:
                grad_norm = along_x.sum() / target_norm
            if grad_x is not None and along_x is not None:
                backend.normalize_backward_(grad_x, x, factor, along_x, target_norm)
        unused = (None,) * (TENSORS - 5)
        return grad_x, source.grad_weight, source.grad_bias, grad_scale, grad_norm, *unused, *source.grad_inputs


def _operands(
    backend: Backend, x: Tensor, spec: ScoreSpec, scale: Tensor | None, target_norm: Tensor | float | None, classes: int
) -> Operands:
    """What the chunks share."""
    factor = row = inverse = center_index = None
    if target_norm is not None:
        x, factor = backend.normalize(x, target_norm)
    if spec.kind == "distance":
        row = backend.squares(x, spec.constant, -spec.rate)
    if spec.kind == "cosine":
        inverse = x.new_empty(classes * spec.num_centers, dtype=sum_type(x))
    if spec.num_centers > 1:
        center_index = x.new_zeros(x.size(0), classes, dtype=torch.uint8)
    return Operands(x, spec, scale, row, factor, inverse, center_index)


def _merged(parts: list[SoftmaxStats], classes: int) -> SoftmaxStats:
    """Those of all classes from those of the chunks. Without any other class there is nothing to sum: a finite stand-in for
    log 0 keeps the gradients finite."""
    if len(parts) > 1:
        tops, sums = torch.stack([part.max for part in parts]), torch.stack([part.sum_exp for part in parts])
        top = tops.amax(dim=0)
        sum_exp = sums.mul_((tops - top).exp_()).sum(dim=0)
        return SoftmaxStats(top, sum_exp, sum_exp.log().add_(top))
    if classes > 1:
        return parts[0]
    top = parts[0].max.clamp(min=torch.finfo(parts[0].max.dtype).min / 4)
    return SoftmaxStats(top, torch.ones_like(top), top)


def _by_set(per_set: Sequence[Tensor | None], sets: int, reduced: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the L log-sum-exps, scores and squared norms, [N] each; an empty list for none of a kind."""
    kinds: list[list[Tensor]] = []
    start = 0
    for there in (reduced, True, True):
        found = per_set[start : start + sets] if there else []
        start += sets if there else 0
        some = next((grad for grad in found if grad is not None), None)
        kinds.append([] if some is None else [torch.zeros_like(some) if g is None else g for g in found])
    return kinds[0], kinds[1], kinds[2]


def _view(z: Tensor | None, buffer: Tensor | None, low: int, high: int) -> Tensor:
    """Where a chunk's logits are: their columns of all logits, or the buffer that each chunk uses again."""
    if z is not None:
        return z if high - low == z.size(1) else z[:, low:high]
    assert buffer is not None
    return buffer[:, : high - low]


def _columns(targets: Tensor | None) -> list[Tensor]:
    return [] if targets is None else [targets.view(-1)] if targets.size(1) == 1 else list(targets.unbind(dim=1))
