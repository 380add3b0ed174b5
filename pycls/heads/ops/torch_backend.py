"""The backend of torch's operations: the reference, for every device, type and kind of similarity."""

import math

import torch
from torch import Tensor

from pycls.heads.ops.backend import Chunk, Gradients, ScoreGrads, SoftmaxStats
from pycls.heads.ops.derived_weight import Prototypes
from pycls.heads.ops.products import HALF, add_product, product, sum_type
from pycls.heads.ops.spec import TINY, ScoreSpec


class TorchBackend:
    """See :class:`pycls.heads.ops.backend.Backend`. Nothing here waits for the device."""

    name = "torch"

    def normalize(self, x: Tensor, target_norm: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of this norm; a norm of infinity instead of 0 leaves a zero row at 0."""
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=sum_type(x))
        factor = torch.threshold_(norms, TINY**0.5, math.inf).reciprocal_().mul_(target_norm)
        return (x if x.dtype in HALF else x * factor), factor

    def normalize_backward_(
        self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, target_norm: Tensor | float
    ) -> None:
        """d(s x / |x|) / dx = s / |x| - (s x / |x|) (s x / |x|)^T / (s |x|)."""
        if x.dtype in HALF:  # x is not normalised: the products are
            grad.addcmul_(x, along.mul_(factor).mul_(factor).mul_(-1 / target_norm**2))
        else:
            grad.mul_(factor).addcmul_(x, along.mul_(factor).mul_(-1 / target_norm**2))

    def squares(self, rows: Tensor, constant: float, rate: float) -> Tensor:
        """constant + rate |v|^2."""
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=sum_type(rows))
        return norms.square_().mul_(rate).add_(constant)

    def add_rows_(self, out: Tensor, rows: Tensor, factor: float, per_row: Tensor) -> None:
        """out += factor per_row rows."""
        out.addcmul_(rows, per_row, value=factor)

    def target_squares(self, weight: Tensor, target: Tensor) -> Tensor:
        """|w|^2."""
        return _target_rows(weight, target).square_().sum(dim=1)

    def add_target_squares_grad_(self, grad: Tensor, weight: Tensor, target: Tensor, by_square: Tensor) -> None:
        """2 w."""
        grad.index_add_(0, target.clamp(min=0), _target_rows(weight, target).mul_(2 * by_square[:, None]))

    def forward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, scores: list[Tensor], reduce: bool,
        max_other: Tensor | None, keep: bool,
    ) -> list[SoftmaxStats]:  # fmt: skip
        """Scores in ``z``, which then become logits."""
        u = _scores(chunk, z, first=True)
        places = [_TargetIndex(target, chunk) for target in targets]
        for place, score in zip(places, scores, strict=True):
            score.copy_(place.read(u, score))
        logits = _logits(chunk, u)
        stats = []
        if reduce:
            shifted = logits if offset is None else logits + offset[chunk.low : chunk.high]
            for place in places:
                kept = place.put(shifted, -torch.inf)
                stats.append(_stats_of(shifted))
                place.restore(shifted, kept)
        if max_other is not None:
            kept = places[0].put(logits, -torch.inf)
            torch.amax(logits, dim=1, out=max_other)
            places[0].restore(logits, kept)
        return stats

    def backward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, stats: list[SoftmaxStats],
        by: ScoreGrads, grads: Gradients, recompute: bool,
    ) -> None:  # fmt: skip
        """By the logits, then by the scores, then by features and prototypes."""
        logits = _logits(chunk, _scores(chunk, z, first=False)) if recompute else z
        places = [_TargetIndex(target, chunk) for target in targets]
        grad = None if by.logits is None else by.logits[:, chunk.low : chunk.high].clone()
        if by.others:
            shifted = logits.clone() if offset is None else logits + offset[chunk.low : chunk.high]
            softmax = _softmax_grad(shifted, places, stats, by.others)
            grad = softmax if grad is None else grad.add_(softmax)
        if by.total is not None and by.total_weights is not None:
            spread = torch.outer(by.total, by.total_weights[chunk.low : chunk.high])
            grad = spread if grad is None else grad.add_(spread)
        if grad is None:
            grad = torch.zeros_like(logits)
        scale = chunk.operands.scale
        if grads.scale is not None:
            grads.scale += (grad * logits).sum()
        grad = chunk.spec.transform.backward_(grad, logits, scale)
        for place, added in zip(places, by.scores, strict=False):
            place.add(grad, added)
        if grads.bias is not None:
            torch.sum(grad, dim=0, out=grads.bias)
        _products_backward(chunk, grad, logits, grads)


BACKEND = TorchBackend()


class _TargetIndex:
    """Where targets, int64 [N], are within a chunk; some may be elsewhere."""

    def __init__(self, target: Tensor, chunk: Chunk) -> None:
        column = target[:, None]
        self.here = (column >= chunk.low) & (column < chunk.high)
        self.column = (column - chunk.low).clamp_(0, chunk.high - chunk.low - 1)

    def read(self, values: Tensor, otherwise: Tensor) -> Tensor:
        """The targets' ``values`` [N]; ``otherwise`` for those that are in another chunk."""
        return torch.where(self.here, values.gather(1, self.column), otherwise[:, None])[:, 0]

    def put(self, values: Tensor, value: float) -> Tensor:
        """Writes ``value`` at the targets; returns what was there, [N, 1], for :meth:`restore`."""
        kept = values.gather(1, self.column)
        values.scatter_(1, self.column, torch.where(self.here, value, kept))
        return kept

    def restore(self, values: Tensor, kept: Tensor) -> None:
        """Undoes :meth:`put`."""
        values.scatter_(1, self.column, kept)

    def add(self, values: Tensor, added: Tensor) -> None:
        """Adds ``added`` [N] at the targets."""
        values.scatter_add_(1, self.column, torch.where(self.here, added[:, None], 0))


def _scores(chunk: Chunk, out: Tensor, first: bool) -> Tensor:
    """u [N, c], in ``out``. The first time the prototypes' norms and the nearest centres are stored, too."""
    spec, operands, bias = chunk.spec, chunk.operands, chunk.bias
    x, kind = operands.x, sum_type(operands.x)
    direct = out if spec.num_centers == 1 else None
    if spec.kind == "distance":
        squares = torch.linalg.vector_norm(chunk.rows, dim=1, dtype=kind).square_()
        p = product(x, chunk.rows.t(), direct, added=squares, beta=-spec.rate, alpha=2 * spec.rate)
        if operands.row is not None:
            p.add_(operands.row)
    elif spec.kind == "product" and bias is not None and spec.num_centers == 1 and x.dtype not in HALF:
        p, bias = product(x, chunk.rows.t(), out, added=bias), None
    else:
        p = product(x, chunk.rows.t(), direct)
    if operands.norm_factor is not None and x.dtype in HALF:
        p.mul_(operands.norm_factor)
    if chunk.inverse_norms is not None:
        if first:
            torch.linalg.vector_norm(chunk.rows, dim=1, dtype=kind, out=chunk.inverse_norms)
            torch.threshold_(chunk.inverse_norms, TINY**0.5, math.inf).reciprocal_()  # 0 for a zero prototype
        p.mul_(chunk.inverse_norms)
    if chunk.center_index is not None:
        of_centers = p.view(len(p), chunk.high - chunk.low, spec.num_centers)
        if first:
            best = of_centers.max(dim=2)
            chunk.center_index.copy_(best.indices)
            p = out.copy_(best.values)
        else:
            p = out.copy_(of_centers.gather(2, chunk.center_index[:, :, None].long())[:, :, 0])
    return p if bias is None else p.add_(bias)


def _logits(chunk: Chunk, u: Tensor) -> Tensor:
    """z [N, c], in place of u."""
    z = chunk.spec.transform.forward_(u, chunk.operands.scale)
    return u if z is u else u.copy_(z)


def _products_backward(chunk: Chunk, grad: Tensor, z: Tensor, grads: Gradients) -> None:
    """From the gradient by the scores [N, c] to those by x and the prototypes."""
    spec, operands = chunk.spec, chunk.operands
    x, half, kind = operands.x, operands.x.dtype in HALF, sum_type(operands.x)
    if half and spec.kind != "cosine":
        grad = grad.to(x.dtype)  # so that what is summed is what is multiplied: x - w is a difference of the two
    along, along_rows = grad, None
    if spec.kind == "cosine":
        # d(p / |w|) / dw = x / |w| - u w / |w|^2
        score = spec.transform.score_of(z, operands.scale)
        along = grad * (score if chunk.bias is None else score - chunk.bias)
    if grads.along_x is not None:
        grads.along_x += along.sum(dim=1, keepdim=True, dtype=kind)
    if chunk.center_index is not None:
        if spec.kind != "product" and grads.weight is not None:
            along = _spread(along, chunk.center_index, spec.num_centers)
        grad = _spread(grad, chunk.center_index, spec.num_centers)
    if spec.kind != "product" and grads.weight is not None:
        along_rows = along.sum(dim=0, dtype=kind)
    if chunk.inverse_norms is not None:
        grad = grad.mul_(chunk.inverse_norms)
    if operands.norm_factor is not None and half:
        grad = grad.mul_(operands.norm_factor)
    if half:
        grad = grad.to(x.dtype)
    factor = spec.product_factor
    if grads.x is not None:
        add_product(grads.x, grad, chunk.rows, beta=float(chunk.low > 0), alpha=factor)
    if grads.weight is None:
        return
    if along_rows is None:
        product(grad.t(), x, grads.weight)
        return
    if chunk.inverse_norms is not None:
        along_rows = along_rows.mul(chunk.inverse_norms).mul_(chunk.inverse_norms)
    torch.mul(chunk.rows, along_rows[:, None], out=grads.weight)
    add_product(grads.weight, grad.t(), x, beta=-factor, alpha=factor)


def _stats_of(z: Tensor) -> SoftmaxStats:
    """Of z [N, c], where at most one of a row is -inf. Softmax is one kernel, quicker than exp alone; the largest probability
    tells the sum."""
    top = z.amax(dim=1)
    if z.shape[1] == 1:
        return SoftmaxStats(top, (top > -torch.inf).to(z.dtype), top)
    sum_exp = torch.softmax(z, dim=1).amax(dim=1).reciprocal_()
    return SoftmaxStats(top, sum_exp, sum_exp.log().add_(top))


def _softmax_grad(
    shifted: Tensor, places: list[_TargetIndex], stats: list[SoftmaxStats], by_others: list[Tensor]
) -> Tensor:
    """Sum over the label sets of ``by_others`` times the probability ``exp(shifted - max) / sum_exp`` [N, c] of each class but
    the set's targets."""
    result = None
    for place, found, by in zip(places, stats, by_others, strict=True):
        kept = place.put(shifted, -torch.inf)
        share = (shifted - found.max[:, None]).exp_().mul_((by / found.sum_exp)[:, None])
        result = share if result is None else result.add_(share)
        place.restore(shifted, kept)
    assert result is not None
    return result


def _spread(values: Tensor, center_index: Tensor, num_centers: int) -> Tensor:
    """[N, c] -> [N, c * centers], each value at the prototype that gave the score."""
    spread = values.new_zeros(*values.shape, num_centers)
    return spread.scatter_(2, center_index[:, :, None].long(), values[:, :, None]).flatten(1)


def _target_rows(weight: Tensor, target: Tensor) -> Tensor:
    """The targets' prototypes [N, D], any one for -1; a copy, in float32 of half precision."""
    return weight.index_select(0, target.clamp(min=0)).to(sum_type(weight))


def exported_logits(
    x: Tensor, prototypes: Prototypes, spec: ScoreSpec, scale: Tensor | None, target_norm: Tensor | float | None
) -> Tensor:
    """Logits [N, K] as a graph for any N, for ``torch.export``: neither the chunks nor the storage may depend on N there."""
    weight, bias, _ = prototypes
    if target_norm is not None:
        x = x * (target_norm * _inverse(torch.linalg.vector_norm(x, dim=1, keepdim=True)))
    u = x @ weight.t()
    norms = torch.linalg.vector_norm(weight, dim=1)
    if spec.kind == "cosine":
        u = u * _inverse(norms)
    elif spec.kind == "distance":
        squares = x.square().sum(dim=1, keepdim=True)
        u = spec.constant - spec.rate * (squares - 2 * u + norms.square())
    if spec.num_centers > 1:
        u = u.unflatten(1, (-1, spec.num_centers)).amax(dim=2)
    u = u if bias is None else u + bias
    return spec.transform.forward_(u.clone(), scale)


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > TINY**0.5, norms.reciprocal(), 0)
