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

from typing import NamedTuple

import torch
from torch import Tensor

from pycls.heads.form import TINY, Form
from pycls.heads.gram_function import Gram

KEPT_ELEMENTS = 1 << 30
"""Logits kept for the backward pass at the most, without being told: 4 GB of float32. More are computed again, chunk by
chunk, which costs a fourth product beside the three and no memory that grows with K."""


class Scores(NamedTuple):
    """What one pass over the prototypes gives. L is the number of label sets (2 for a mixture); None if not asked for.

    Attributes:
        logits: [N, K]; None where they are computed again for the backward pass.
        others: [N, L], log-sum-exp of the logits (plus ``offset``) over the classes that are not the target.
        total: [N], (weighted) sum of the logits over all classes.
        measure: [N, L], u of the target.
        squared_norm: [N, L], |w|^2 of the target's prototype.
        rival: [N, L], the largest logit (without ``offset``) of the other classes; no gradient.
    """

    logits: Tensor | None
    others: Tensor | None
    total: Tensor | None
    measure: Tensor | None
    squared_norm: Tensor | None
    rival: Tensor | None


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
        targets: int64 [N, L], each in 0..K-1; where there is none, any, with no gradient from what comes of it.
        reduce: whether ``others`` is wanted.
        total: whether ``total`` is wanted; weights [K] for a weighted sum.
        norms: whether ``squared_norm`` is wanted (``columns="plain"`` and one centre a class).
        chunk: classes a chunk; 0 chooses. With a number of one's own, or more than ``KEPT_ELEMENTS`` logits, softmax losses
            do not keep the logits: ``reduce`` without them.
    """
    if targets is None and torch.compiler.is_exporting():
        return Scores(_graph_logits(x, weight, form, row, bias, scale), None, None, None, None, None)
    many = len(x) * (len(weight) // form.num_centers) > KEPT_ELEMENTS
    keep = not (reduce and torch.is_grad_enabled() and (chunk > 0 or many))
    weights = total if isinstance(total, Tensor) else weight.new_ones(len(weight) // form.num_centers) if total else None
    return Scores(*Gram.apply(x, weight, row, bias, scale, offset, targets, weights, form, reduce, norms, chunk, keep))


def _graph_logits(
    x: Tensor, weight: Tensor, form: Form, row: Tensor | None, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    """Logits [N, K] as a graph for any N, for ``torch.export``: neither the chunks nor the storage may depend on N there."""
    squares = torch.linalg.vector_norm(weight, dim=1).square()
    u = x @ weight.t()
    if form.columns == "unit":
        u = u * torch.where(squares > TINY, squares.rsqrt(), 0)
    elif form.columns == "square":
        u = u + form.square * squares
    if form.num_centers > 1:
        u = u.unflatten(1, (-1, form.num_centers)).amax(dim=2)
    u = u if bias is None else u + bias
    u = u if row is None else u + row[:, None]
    return form.link.apply_(u.clone(), scale)
