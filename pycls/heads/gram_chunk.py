"""A chunk of the classes in the pass over the prototypes: its measures, its logits, its gradients, where its targets are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pycls.heads.form import CHUNK_ELEMENTS, LOGITS_ELEMENTS, TINY, Form
from pycls.heads.gpu_sizes import classes_a_chunk
from pycls.heads.products import HALF, add_product, product, sum_type
from pycls.heads.prototypes import Prototypes


def chunks(num_classes: int, width: int, samples: int, chunk: int) -> list[tuple[int, int]]:
    """[low, high) of each chunk of classes with ``width`` numbers a class; what fits twice into the cache is not cut."""
    if chunk <= 0 and num_classes * max(width, samples) <= CHUNK_ELEMENTS:
        return [(0, num_classes)]
    if chunk <= 0:
        chunk = min(CHUNK_ELEMENTS // max(width, 1), LOGITS_ELEMENTS // max(samples, 1))
        chunk = max(256, chunk)
        chunk = num_classes if num_classes <= 2 * chunk else chunk
    return _cut(num_classes, chunk)


def gpu_chunks(num_classes: int, centers: int, samples: int, chunk: int, device: torch.device) -> list[tuple[int, int]]:
    """The same for a CUDA device, whose cache is to hold a chunk's products."""
    if chunk <= 0:
        chunk = classes_a_chunk(centers, samples, device)
        chunk = max(num_classes, 1) if num_classes <= 2 * chunk else chunk
    return _cut(num_classes, chunk)


def _cut(num_classes: int, chunk: int) -> list[tuple[int, int]]:
    return [(low, min(low + chunk, num_classes)) for low in range(0, num_classes, chunk)]


class Places:
    """Where the targets, a column [N, 1], are within the chunk [low, high); ``some`` may be elsewhere. Nothing here waits for
    the device."""

    def __init__(self, column: Tensor, low: int, high: int, some: bool) -> None:
        self.column, self.there = column, None
        if some:
            self.there = (column >= low) & (column < high)
            self.column = (column - low).clamp_(0, high - low - 1)

    def read(self, values: Tensor, otherwise: Tensor | None) -> Tensor:
        """The targets' ``values`` [N, 1], and ``otherwise`` for those that are in another chunk."""
        found = values.gather(1, self.column)
        return found if self.there is None or otherwise is None else torch.where(self.there, found, otherwise)

    def put(self, values: Tensor, value: float, old: Tensor | None = None) -> Tensor:
        """Writes ``value`` at the targets; returns what stood there, [N, 1], for :meth:`restore` (``old`` if it is known)."""
        if self.there is None:
            old = values.gather(1, self.column) if old is None else old
            values.scatter_(1, self.column, value)
        else:
            old = values.gather(1, self.column)
            values.scatter_(1, self.column, torch.where(self.there, value, old))
        return old

    def restore(self, values: Tensor, old: Tensor) -> None:
        """Undoes :meth:`put`."""
        values.scatter_(1, self.column, old)

    def add(self, values: Tensor, added: Tensor) -> None:
        """Adds ``added`` [N, 1] at the targets."""
        values.scatter_add_(1, self.column, added if self.there is None else torch.where(self.there, added, 0))


@dataclass
class Operands:
    """What a pass multiplies with the prototypes, and what it adds.

    Attributes:
        x: [N, D], the features as they are multiplied: of the given length, if they are given one and ``factor`` is None. In
            half precision if the products are, as are the prototypes; all else is float32 then.
        row: [N, 1], added to a sample's measures: a distance's share that depends on x alone; or None.
        inverse: [K * centers], 1 / |w| of the prototypes where they count as unit vectors; or None.
        picks: uint8 [N, K], which of its centres is a class's measure; or None for one centre a class.
        factor: [N, 1], with which a sample's products are multiplied to give features in half precision a length; or None.
    """

    x: Tensor
    form: Form
    scale: Tensor | None
    row: Tensor | None
    inverse: Tensor | None
    picks: Tensor | None
    factor: Tensor | None = None


class Chunk:
    """The classes from ``low`` on, of which these are the prototypes as they are multiplied, and how their measures and logits
    come from the features."""

    def __init__(self, low: int, prototypes: Prototypes, work: Operands) -> None:
        self.low, self.work, self.form = low, work, work.form
        self.block, self.bias = prototypes.rows, prototypes.bias
        centers = work.form.num_centers
        first, end = low * centers, low * centers + self.block.size(0)
        self.inverse = None if work.inverse is None else work.inverse[first:end]
        self.picks = None if work.picks is None else work.picks[:, low : end // centers]

    def measures(self, out: Tensor, first: bool) -> Tensor:
        """u [N, c], in ``out``. The first time the prototypes' norms and the picked centres are stored, too."""
        form, x, bias, rate = self.form, self.work.x, self.bias, self.form.rate
        direct, kind = out if form.num_centers == 1 else None, sum_type(x)
        if form.kind == "distance":
            squares = torch.linalg.vector_norm(self.block, dim=1, dtype=kind).square_()
            p = product(x, self.block.t(), direct, added=squares, beta=-rate, alpha=2 * rate)
            if self.work.row is not None:
                p.add_(self.work.row)
        elif form.kind == "product" and bias is not None and form.num_centers == 1:
            p, bias = product(x, self.block.t(), out, added=bias), None
        else:
            p = product(x, self.block.t(), direct)
        if self.work.factor is not None:
            p.mul_(self.work.factor)
        if self.inverse is not None:
            if first:
                torch.linalg.vector_norm(self.block, dim=1, dtype=kind, out=self.inverse)
                torch.threshold_(self.inverse, TINY**0.5, math.inf).reciprocal_()  # 0 for a prototype that counts as zero
            p.mul_(self.inverse)
        if self.picks is not None:
            best = p.unflatten(1, (-1, form.num_centers)).max(dim=2)
            p = out.copy_(best.values)
            self.picks.copy_(best.indices)
        return p if bias is None else p.add_(bias)

    def logits(self, u: Tensor) -> Tensor:
        """z [N, c], in place of u."""
        z = self.form.link.apply_(u, self.work.scale)
        return u if z is u else u.copy_(z)

    def pull(self, grad: Tensor, z: Tensor, grads: "Gradients") -> None:
        """From the gradient by the measures [N, c] to those by x and the prototypes."""
        form, x = self.form, self.work.x
        half = x.dtype in HALF
        if half and form.kind != "cosine":
            grad = grad.to(x.dtype)  # so that what is summed is what is multiplied: x - w is a difference of the two
        along, kind = grad, sum_type(x)
        stretch: Tensor | None = None
        if form.kind == "cosine":
            # d(p / |w|) / dw = x / |w| - u w / |w|^2
            along = grad * form.link.measure(z, self.work.scale)
        if grads.along_x is not None:
            grads.along_x += along.sum(dim=1, keepdim=True, dtype=kind)
        if self.picks is not None:
            if form.kind != "product" and grads.weight is not None:
                along = _spread(along, self.picks, form.num_centers)
            grad = _spread(grad, self.picks, form.num_centers)
        if form.kind != "product" and grads.weight is not None:
            stretch = along.sum(dim=0, dtype=kind)
        if self.inverse is not None:
            grad = grad.mul_(self.inverse)
        if self.work.factor is not None:
            grad = grad.mul_(self.work.factor)
        if half:
            grad = grad.to(x.dtype)
        factor = 2 * form.rate if form.kind == "distance" else 1.0
        if grads.x is not None:
            add_product(grads.x, grad, self.block, beta=float(self.low > 0), alpha=factor)
        if grads.weight is None:
            return
        if stretch is None:
            product(grad.t(), x, grads.weight)
            return
        if self.inverse is not None:
            stretch = stretch.mul(self.inverse).mul_(self.inverse)
        torch.mul(self.block, stretch[:, None], out=grads.weight)
        add_product(grads.weight, grad.t(), x, beta=-factor, alpha=factor)


@dataclass
class Gradients:
    """What the backward pass of a chunk of c classes fills or, of what all chunks have, adds to. None for what is not wanted.

    Attributes:
        x: [N, D]; the first chunk sets it.
        weight: [c * centers, D].
        bias: [c].
        scale: 0-dim, by the link's scale, times it.
        along_x: [N, 1], the sums over the classes of what depends on |x|.
    """

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    along_x: Tensor | None


def _spread(values: Tensor, picks: Tensor, centers: int) -> Tensor:
    """[N, c] -> [N, c * centers], each value at the prototype that was picked."""
    spread = values.new_zeros(*values.shape, centers)
    return spread.scatter_(2, picks[:, :, None].long(), values[:, :, None]).flatten(1)
