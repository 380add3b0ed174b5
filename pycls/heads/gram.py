"""The one expensive step of every head: features against all prototypes, forward and backward.

Every similarity here is a function of the product ``p = x . w`` and of the squared norms of ``x`` and ``w``, in three
steps:

    p [N, K] = x W^T                                      x [N, D], or s x / |x|
    u        = p,  p / |w|,  or  c - r (|x|^2 - 2 p + |w|^2)     (+ bias [K]): the measure
    z        = link(u), such as u itself or exp(u)        the logits

All of it, the features' normalisation included, is done here by hand, class chunk by class chunk while the chunk is in the
cache, so that neither a normalised copy of W nor any [N, K, D] or autograd's chain of [N, K] arrays ever exists.

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
from pycls.heads.prototypes import Prototypes, Recipe

KEPT_ELEMENTS = 1 << 30
"""Logits kept for the backward pass at the most, without being told: 4 GB of float32. More are computed again, chunk by
chunk, which costs a fourth product beside the three and no memory that grows with K."""

KEPT_ELEMENTS_CUDA = 1 << 28
"""The same on a CUDA device: 1 GB. There the fourth product, in half precision, should take about as long as writing the
logits to the device's memory and reading them again (at 512 features; reckoned for an H100, not measured), and memory is
what a million classes run out of."""


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
        logits: [N, K]; None where they are computed again for the backward pass.
        others: L times [N], log-sum-exp of the logits (plus ``offset``) over the classes that are not the target.
        total: [N], (weighted) sum of the logits over all classes.
        measure: L times [N], u of the target.
        squared_norm: L times [N], |w|^2 of the target's prototype.
        rival: [N], the largest logit (without ``offset``) of the first label set's other classes, where the logits are not
            kept; no gradient.
        log_determinant: L times [N], of the target's covariance, for a similarity that has one.
        ranking: where the classes are shared out among processes, in evaluation.
    """

    logits: Tensor | None
    total: Tensor | None
    rival: Tensor | None
    others: tuple[Tensor, ...]
    measure: tuple[Tensor, ...]
    squared_norm: tuple[Tensor, ...]
    log_determinant: tuple[Tensor, ...] = ()
    ranking: Ranking | None = None


def gram_scores(
    x: Tensor,
    prototypes: Prototypes | Recipe,
    form: Form,
    *,
    length: Tensor | float | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    targets: Tensor | None = None,
    reduce: bool = False,
    total: bool | Tensor = False,
    norms: bool = False,
    chunk: int = 0,
    absent: bool = False,
    products: torch.dtype | None = None,
) -> Scores:
    """Scores of features x [N, D] against the prototypes of K classes, differentiable once.

    Args:
        x: features.
        prototypes: the prototypes, or how they are made.
        form: the similarity.
        length: the norm that the features are given first, a number or a 0-dim tensor; None to leave them as they are.
        scale: 0-dim, handed to the link.
        offset: [K], added to the logits inside ``others`` only (logit adjustment); no gradient.
        targets: int64 [N, L], each in 0..K-1; where there is none, any, with no gradient from what comes of it.
        reduce: whether ``others`` is wanted.
        total: whether ``total`` is wanted; weights [K] for a weighted sum.
        norms: whether ``squared_norm`` is wanted (of one centre a class).
        chunk: classes a chunk; 0 chooses. With a number of one's own, or more than ``KEPT_ELEMENTS`` logits (on CUDA
            ``KEPT_ELEMENTS_CUDA``), softmax losses do not keep the logits: ``reduce`` without them.
        absent: whether targets may be classes of another process, given as -1: their measures and norms mean nothing, and
            ``others`` is over all classes here.
        products: bfloat16 or float16, to which x and the prototypes are rounded for the matrix products (``products.py``);
            sums, everything else and the gradients are float32. None: their own type.
    """
    if norms or torch.compiler.is_compiling():  # a graph of its own has all prototypes at once
        prototypes = prototypes.whole()
    if targets is None and torch.compiler.is_exporting():
        return Scores(_graph_logits(x, prototypes.whole(), form, scale, length), None, None, (), (), ())
    if isinstance(prototypes, Recipe):
        classes, recipe, made_of = len(prototypes.of[0]), type(prototypes), prototypes.of
        weight = bias = determinants = None
    else:
        (weight, bias, determinants), recipe, made_of = prototypes, None, ()
        classes = weight.size(0) // form.num_centers
    most = KEPT_ELEMENTS_CUDA if x.is_cuda else KEPT_ELEMENTS
    keep = not (reduce and (chunk > 0 or x.size(0) * classes > most) and torch.is_grad_enabled())
    weights = total if isinstance(total, Tensor) else x.new_ones(classes) if total else None
    logits, whole, rival, of_classes, *of_sets = Gram.apply(
        x, weight, bias, scale, length, offset, targets, weights, form, reduce, norms, chunk, keep, absent,
        products, recipe, *made_of,
    )  # fmt: skip
    determinants = of_classes if determinants is None else determinants
    columns = () if targets is None else targets.unbind(dim=1)
    sets = len(columns)
    others, of_targets = (tuple(of_sets[:sets]), of_sets[sets:]) if reduce else ((), of_sets)
    return Scores(
        logits, whole, rival, others, tuple(of_targets[:sets]), tuple(of_targets[sets:]),
        () if determinants is None else tuple(determinants[column.clamp(min=0) if absent else column] for column in columns),
    )  # fmt: skip


def _graph_logits(
    x: Tensor, prototypes: Prototypes, form: Form, scale: Tensor | None, length: Tensor | float | None
) -> Tensor:
    """Logits [N, K] as a graph for any N, for ``torch.export``: neither the chunks nor the storage may depend on N there."""
    weight, bias, _ = prototypes
    if length is not None:
        x = x * (length * _inverse(torch.linalg.vector_norm(x, dim=1, keepdim=True)))
    u = x @ weight.t()
    norms = torch.linalg.vector_norm(weight, dim=1)
    if form.kind == "cosine":
        u = u * _inverse(norms)
    elif form.kind == "distance":
        squares = x.square().sum(dim=1, keepdim=True)
        u = form.constant - form.rate * (squares - 2 * u + norms.square())
    if form.num_centers > 1:
        u = u.unflatten(1, (-1, form.num_centers)).amax(dim=2)
    u = u if bias is None else u + bias
    return form.link.apply_(u.clone(), scale)


def _inverse(norms: Tensor) -> Tensor:
    """1 / |w|, or 0 for a vector that counts as zero."""
    return torch.where(norms > TINY**0.5, norms.reciprocal(), 0)
