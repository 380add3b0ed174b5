"""Forward and backward of :func:`pycls.heads.gram.gram_scores`, by hand, class chunk by class chunk."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pycls.heads.form import TINY, Form, float_products
from pycls.heads.gpu_sizes import aligned
from pycls.heads.gram_chunk import Chunk, Gradients, Operands, Places, chunks, gpu_chunks
from pycls.heads.gram_native import rows_for
from pycls.heads.gram_rows import RowFunctions
from pycls.heads.gram_sums import Sums, by_sums, merged, sums_of
from pycls.heads.products import HALF, sum_type
from pycls.heads.prototypes import Recipe, Source

INPUTS = 16
"""Of :class:`Gram`, before the tensors that its prototypes are made of."""


class Gram(torch.autograd.Function):
    """See :func:`pycls.heads.gram.gram_scores`. Of L label sets the results are L vectors [N] each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, length: Tensor | float | None,
        offset: Tensor | None, targets: Tensor | None, total: Tensor | None, form: Form, reduce: bool, norms: bool,
        chunk: int, keep: bool, absent: bool, products: torch.dtype | None, recipe: type[Recipe] | None,
        *made_of: Tensor,
    ) -> tuple[Tensor | None, ...]:
        samples, width = x.shape
        classes = made_of[0].size(0) if weight is None else weight.size(0) // form.num_centers
        if x.is_cuda:
            limits = gpu_chunks(classes, form.num_centers, samples, chunk, x.device)
        else:
            limits = chunks(classes, width * form.num_centers, samples, chunk)
        if products is not None:
            x = x.to(products, memory_format=torch.contiguous_format)
            weight = None if weight is None else weight.to(products, memory_format=torch.contiguous_format)
        half, kind = products is not None, sum_type(x)
        z = x.new_empty(samples, classes, dtype=kind) if keep else None
        buffer = None if keep else x.new_empty(samples, aligned(limits[0][1]), dtype=kind)
        inverse = x.new_empty(classes * form.num_centers, dtype=kind) if form.kind == "cosine" else None
        picks = x.new_zeros(samples, classes, dtype=torch.uint8) if form.num_centers > 1 else None
        columns = _columns(targets)
        source = Source(weight, bias, recipe, made_of, form.num_centers, x.dtype)
        prototypes = source.take(*limits[0])
        native = rows_for(form, columns, prototypes.bias, x, prototypes.rows, offset, total)
        factor = row = None
        if length is not None and native is not None:
            x, factor = native.stretch(x, length)
        elif length is not None:
            factor = torch.threshold_(torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=kind), TINY**0.5, math.inf)
            factor = factor.reciprocal_().mul_(length)
            x = x if half else x * factor
        elif form.kind == "distance" and native is not None:
            row = native.squares(x, form.constant, -form.rate)
        elif form.kind == "distance":
            row = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=kind).square_().mul_(-form.rate).add_(form.constant)
        work = Operands(x, form, scale, row, inverse, picks, factor if half else None)
        measure: list[Tensor] = [] if native is None or not columns else [x.new_zeros(samples, dtype=kind)]
        parts: list[list[Sums]] = [[] for _ in columns]  # of each label set's chunks
        rivals: list[Tensor] = []
        whole = None if total is None else x.new_zeros(samples, dtype=kind)
        determinants: list[Tensor] = []
        for low, high in limits:
            prototypes = prototypes if low == 0 else source.take(low, high)
            if prototypes.log_determinants is not None:
                determinants.append(prototypes.log_determinants)
            part = Chunk(low, prototypes, work)
            logits = _view(z, buffer, low, high)
            rival = x.new_empty(samples, dtype=kind) if reduce and not keep else None
            if native is not None:
                found = Sums(*x.new_empty(3, samples, dtype=kind).unbind()) if reduce else None
                column, own = (columns[0], measure[0]) if columns else (None, None)
                native.forward(part, logits, column, offset, own, found, rival, keep or whole is not None)
                if found is not None:
                    parts[0].append(found)
            else:
                u = part.measures(logits, first=True)
                places = [Places(column, low, high, absent or len(limits) > 1) for column in columns]
                measure = [place.read(u, measure[k] if measure else None) for k, place in enumerate(places)]
                logits = part.logits(u)
                if reduce:
                    same = form.link.identity and offset is None
                    shifted = logits.contiguous() if offset is None else logits + offset[low:high]
                    for place, of_set, known in zip(places, parts, measure, strict=True):
                        old = place.put(shifted, -torch.inf, known if same else None)
                        of_set.append(sums_of(shifted))
                        if shifted is logits or len(places) > 1:
                            place.restore(shifted, old)
                if rival is not None:
                    old = places[0].put(logits, -torch.inf)
                    torch.amax(logits, dim=1, out=rival)
                    places[0].restore(logits, old)
            if whole is not None and total is not None:
                whole += logits @ total[low:high]
            if rival is not None:
                rivals.append(rival)
        sums = [merged(of_set, classes) for of_set in parts if of_set]
        rival = torch.stack(rivals).amax(dim=0) if rivals else None
        if rival is not None:
            ctx.mark_non_differentiable(rival)
        norms_found = [] if weight is None or not norms else [
            native.squares_of_targets(weight, column) if native is not None else _rows(weight, column).square_().sum(dim=1)
            for column in columns
        ]  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.absent, ctx.native, ctx.recipe = absent, native, recipe
        ctx.form, ctx.limits, ctx.sets, ctx.length = form, limits, len(columns), length if isinstance(length, float) else None
        ctx.save_for_backward(
            x, weight, bias, scale, length if isinstance(length, Tensor) else None, factor, row, offset, targets, total, z,
            inverse, picks, *made_of, *(value for found in sums for value in found[:2]),
        )  # fmt: skip
        measure = [values if native is not None else values[:, 0] for values in measure]
        of_classes = torch.cat(determinants) if determinants else None
        return z, whole, rival, of_classes, *(found.log_sum for found in sums), *measure, *norms_found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_total: Tensor | None, _: None, by_determinants: Tensor | None,
        *by_sets: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        (x, weight, bias, scale, length, factor, row, offset, targets, total, z, inverse, picks,
         *others) = ctx.saved_tensors  # fmt: skip
        (need_x, *needs, need_scale, need_length), need_made_of = ctx.needs_input_grad[:5], ctx.needs_input_grad[INPUTS:]
        made_of, of_sums = others[: len(need_made_of)], others[len(need_made_of) :]
        form: Form = ctx.form
        half, kind = x.dtype in HALF, sum_type(x)
        sums = [Sums(top, share, share) for top, share in zip(of_sums[::2], of_sums[1::2], strict=True)]
        grad_others, grad_measure, grad_norms = _by_set(by_sets, ctx.sets, bool(sums))
        source = Source(weight, bias, ctx.recipe, made_of, form.num_centers, x.dtype, (*needs, *need_made_of))
        by_x = torch.empty_like(x, memory_format=torch.contiguous_format, dtype=kind) if need_x else None
        by_scale = x.new_zeros((), dtype=kind) if need_scale and scale is not None else None
        along_x = x.new_zeros(x.size(0), 1, dtype=kind) if factor is not None or row is not None else None
        buffer = x.new_empty(len(x), aligned(ctx.limits[0][1]), dtype=kind) if z is None else None
        work = Operands(x, form, scale, row, inverse, picks, factor if half else None)
        columns = _columns(targets)
        native: RowFunctions | None = ctx.native if grad_z is None and grad_others else None
        with float_products(x):
            for low, high in ctx.limits:
                part = Chunk(low, source.take(low, high), work)
                grads = Gradients(by_x, *source.gradients(), by_scale, along_x)
                logits = _view(z, buffer, low, high)
                if native is not None:
                    native.backward(part, logits, columns[0], offset, sums[0], grad_others[0], grad_total, total,
                                    grad_measure[0] if grad_measure else None, grads, z is None)  # fmt: skip
                    source.pull(by_determinants)
                    continue
                if z is None:
                    logits = part.logits(part.measures(logits, first=False))
                places = [Places(column, low, high, ctx.absent or len(ctx.limits) > 1) for column in columns]
                by_logits = None if grad_z is None else grad_z[:, low:high].clone()
                if grad_others:
                    shifted = logits.clone() if offset is None else logits + offset[low:high]
                    by_sum = by_sums(shifted, places, sums, grad_others)
                    by_logits = by_sum if by_logits is None else by_logits.add_(by_sum)
                if grad_total is not None:
                    spread = torch.outer(grad_total, total[low:high])
                    by_logits = spread if by_logits is None else by_logits.add_(spread)
                if by_logits is None:
                    by_logits = torch.zeros_like(logits)
                if by_scale is not None:
                    by_scale += (by_logits * logits).sum()
                grad = form.link.pull_(by_logits, logits, scale)
                for place, added in zip(places, grad_measure, strict=False):
                    place.add(grad, added)
                if grads.bias is not None:
                    torch.sum(grad, dim=0, out=grads.bias)
                part.pull(grad, logits, grads)
                source.pull(by_determinants)
            if source.by_weight is not None:
                for column, by_square in zip(columns, grad_norms, strict=False):
                    if native is not None:
                        native.add_to_targets(source.by_weight, weight, column, by_square)
                        continue
                    source.by_weight.index_add_(0, column[:, 0].clamp(min=0), _rows(weight, column).mul_(2 * by_square))
        if by_scale is not None:
            by_scale /= scale
        grad_length = None
        if factor is not None and along_x is not None:
            # d(s x / |x|) / dx = s / |x| - (s x / |x|) (s x / |x|)^T / (s |x|)
            size = ctx.length if length is None else length
            if need_length:
                grad_length = along_x.sum() / size
            if by_x is not None and native is not None:
                native.unstretch_(by_x, x, factor, along_x, size)
            elif by_x is not None:
                (along_x if half else by_x).mul_(factor)  # in half precision x is not stretched: the products are
                by_x.addcmul_(x, along_x.mul_(factor).mul_(-1 / size**2))
        elif along_x is not None and by_x is not None and native is not None:
            native.combine_(by_x, 1.0, None, x, -2 * form.rate, along_x, None, 1)
        elif along_x is not None and by_x is not None:
            by_x.addcmul_(x, along_x, value=-2 * form.rate)
        return by_x, source.by_weight, source.by_bias, by_scale, grad_length, *(None,) * (INPUTS - 5), *source.by_made_of


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
        return z if high - low == z.size(1) else z[:, low:high]
    assert buffer is not None
    return buffer[:, : high - low]


def _columns(values: Tensor | None) -> list[Tensor]:
    """[N, L] as L columns [N, 1]."""
    if values is None:
        return []
    return [values] if values.size(1) == 1 else list(values.split(1, dim=1))


def _rows(weight: Tensor, column: Tensor) -> Tensor:
    """The prototypes [N, D] of a column of targets, any one for -1; a copy, in float32 of half precision."""
    return weight.index_select(0, column[:, 0].clamp(min=0)).to(sum_type(weight))
