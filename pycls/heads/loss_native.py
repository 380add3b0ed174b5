"""A head's training step in four calls of compiled C (``step.c``) and its three matrix products.

For what most training on a processor is: parts that the C knows, float32, one label a sample, and prototypes that need not be
cut into chunks. All else has the same arithmetic by ``Head``, from the pass over the prototypes (``gram.py``) and torch's own
operations on what it gives. These are dozens a step on [N] numbers, and between two matrix products, which leave nothing
else in a core's caches, each takes far longer than the arithmetic in it.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycls.heads.codes import MarginCode, MarginKind, TargetCode, speaks_for
from pycls.heads.form import Form, float_products
from pycls.heads.gram_chunk import chunks
from pycls.heads.gram_native import fits
from pycls.heads.labels import no_class
from pycls.heads.operands import plain
from pycls.heads.parts import Auxiliary, Criterion, Margin, Queries, Similarity, SoftmaxCriterion
from pycls.heads.prototypes import Recipe
from pycls.runtime.native import compiled

SOURCE = Path(__file__).with_name("step.c")
VECTORS = 13
"""[N] each, and two [K], that the C works with."""
HEADERS = tuple(Path(__file__).with_name(name) for name in ("exp.h", "rows.h", "tail.h"))
MOST_CENTERS = 255
KINDS = {"product": 0, "cosine": 1, "distance": 2}


@dataclass(frozen=True)
class Tail:
    """What is done with the targets, as plain data.

    Attributes:
        target: how measures follow from what the margin acts on.
        margin: the margin.
        grown: how much of it there is, in [0, 1].
        weights: [K], of the classes in the mean, or None.
        mean_logit: times the mean of the targets' logits, without margin, is part of the loss.
    """

    target: TargetCode
    margin: MarginCode
    grown: float
    weights: Tensor | None
    mean_logit: float


class Losses(NamedTuple):
    """What the step gives.

    Attributes:
        loss: scalar.
        logits: [N, K].
        measure: [N], of the targets.
        every: whether every sample has a target.
        mean_logit: the mean of the targets' logits, without margin.
        of_criterion: the loss without the part that is this mean's.
    """

    loss: Tensor
    logits: Tensor
    measure: Tensor
    every: bool
    mean_logit: float
    of_criterion: float


def tail_of(
    similarity: Similarity, margin: Margin | None, criterion: Criterion, grown: float, mean_logit: float = 0.0
) -> Tail | None:
    """The parts as the C has them, or None if it does not know one of them."""
    if similarity.shard is not None or type(similarity).scores is not Similarity.scores:
        return None
    if not isinstance(criterion, SoftmaxCriterion):
        return None
    if not criterion.plain or not speaks_for(criterion, "plain", "forward"):
        return None
    target, code = TargetCode(), MarginCode()
    if margin is not None:
        found, asked = similarity.target_code(), margin.code()
        if found is None or asked is None or not speaks_for(margin, "code", "forward"):
            return None
        if not speaks_for(similarity, "target_code", "to_margin_domain", "from_margin_domain"):
            return None
        target, code = found, asked
    weights = criterion.class_weights()
    return Tail(target, code, grown, None if weights is None else weights.float(), mean_logit)


def of_mean_logit(auxiliary: Auxiliary) -> float | None:
    """What an auxiliary loss says of itself, if it is to be believed and there is nothing else to it."""
    known = speaks_for(auxiliary, "of_mean_logit", "forward") and type(auxiliary).update is Auxiliary.update
    return auxiliary.of_mean_logit() if known else None


def native_losses(
    tail: Tail, similarity: Similarity, queries: Queries, labels: Tensor, offset: Tensor | None
) -> Losses | None:
    """The step; None where it cannot be done here.

    Args:
        tail: the margin and the criterion.
        similarity: the similarity.
        queries: the features.
        labels: int64 [N], -1 for no target.
        offset: [K], added to the logits before they are compared.

    Raises:
        ValueError: if a label is neither a class nor -1.
    """
    x, form, functions = queries.x, similarity.form, _functions()
    if functions is None or not len(x) or not plain(x, offset, tail.weights):
        return None
    if not labels.is_cpu or labels.dtype is not torch.int64 or labels.shape != x.shape[:1]:
        return None
    prototypes = similarity.prototypes()
    if isinstance(prototypes, Recipe) and not plain(*prototypes.of):
        return None
    classes = len(prototypes.of[0]) if isinstance(prototypes, Recipe) else len(prototypes.rows) // form.num_centers
    if similarity.chunk > 0 or len(chunks(classes, x.shape[1] * form.num_centers, len(x), 0)) > 1:
        return None
    weight, bias, determinants = prototypes.whole()
    if not fits(form, labels, bias, weight, determinants):
        return None
    centers = form.num_centers
    if centers > 1 and (form.kind != "cosine" or not form.link.identity or centers > MOST_CENTERS):
        return None
    if tail.margin.kind == MarginKind.NONE:
        determinants = None
    return Losses(*HeadLoss.apply(
        x, weight, bias, similarity.link_scale(), queries.length, determinants, offset, labels, form, tail
    ))  # fmt: skip


class HeadLoss(torch.autograd.Function):
    """See :func:`native_losses`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, length: Tensor | float | None,
        determinants: Tensor | None, offset: Tensor | None, labels: Tensor, form: Form, tail: Tail,
    ) -> tuple[Tensor, Tensor, Tensor, bool, float, float]:  # fmt: skip
        (samples, width), rows, centers, functions = x.shape, len(weight), form.num_centers, _functions()
        classes = rows // centers
        assert functions is not None
        stretched = None if length is None else torch.empty_like(x)
        z, vectors = x.new_empty(samples, classes), x.new_empty(VECTORS * samples + 2 * rows)
        products, picks = z, None
        if centers > 1:
            products, picks = x.new_empty(samples, rows), torch.empty(samples, classes, dtype=torch.uint8)
        margin, target, (link, kappa) = tail.margin, tail.target, form.link.compiled or (0, 0.0)
        step = _Step(
            samples, width, classes, centers, x.data_ptr(), weight.data_ptr(), _at(bias), labels.data_ptr(), _at(offset),
            _at(tail.weights), _at(determinants), _at(margin.margins), _at(stretched), vectors.data_ptr(),
            products.data_ptr(), z.data_ptr(), _at(picks), *(None,) * 7, margin.a, margin.b, margin.c, tail.grown,
            1.0 if length is None else float(length), target.constant, target.rate, 1.0 if scale is None else float(scale),
            kappa, tail.mean_logit, form.constant, form.rate, *(0.0,) * 7, KINDS[form.kind], link, target.kind, margin.kind,
            torch.get_num_threads(), length is not None, False,
        )  # fmt: skip
        about = ctypes.byref(step)
        wrong = functions.prepare(about)
        if wrong != -1:
            raise no_class(wrong, classes)
        torch.mm(x if stretched is None else stretched, weight.t(), out=products)
        functions.forward(about)
        ctx.set_materialize_grads(False)
        ctx.step, ctx.stretched, ctx.vectors, ctx.picks = step, stretched, vectors, picks
        ctx.needs_finish = form.kind != "product" or margin.kind != MarginKind.NONE
        ctx.save_for_backward(x, weight, labels, offset, z)
        loss = x.new_full((), step.loss + tail.mean_logit * step.mean_logit)
        return loss, z, vectors[samples : 2 * samples], not step.absent, step.mean_logit, step.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_loss: Tensor | None, grad_z: Tensor | None, grad_measure: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        x, weight, labels, offset, z = ctx.saved_tensors
        functions, step, (need_x, need_weight, *need) = _functions(), ctx.step, ctx.needs_input_grad
        assert functions is not None
        grad_z, grad_measure = (g if g is None else g.contiguous() for g in (grad_z, grad_measure))
        grad = z.new_empty(len(z), len(weight))
        by_bias, by_determinant = (z.new_empty(z.shape[1]) if needed else None for needed in (need[0], need[3]))
        step.x, step.w, step.target, step.offset = x.data_ptr(), weight.data_ptr(), labels.data_ptr(), _at(offset)
        step.z, step.grad, step.by_bias = z.data_ptr(), grad.data_ptr(), _at(by_bias)
        step.by_determinant = _at(by_determinant)
        step.by_z, step.more_by_measure = _at(grad_z), _at(grad_measure)
        step.upstream = 0.0 if grad_loss is None else float(grad_loss)
        about = ctypes.byref(step)
        if not functions.gradient(about):
            raise MemoryError("there is no memory for the sums of a head's backward pass")
        with float_products(x):
            by_x = torch.mm(grad, weight) if need_x else None
            by_weight = torch.mm(grad.t(), x if ctx.stretched is None else ctx.stretched) if need_weight else None
        if ctx.needs_finish:
            step.by_x, step.by_w = _at(by_x), _at(by_weight)
            functions.finish(about)
        by_scale = x.new_full((), step.all_by_scale) if need[1] else None
        by_length = x.new_full((), step.all_by_length) if need[2] else None
        return by_x, by_weight, by_bias, by_scale, by_length, by_determinant, *(None,) * 4


class _Step(ctypes.Structure):
    """``step`` of step.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "d", "k", "centers")),
        *((name, ctypes.c_void_p) for name in (
            "x", "w", "bias", "target", "offset", "weights", "determinant", "margins", "stretched", "vectors", "products",
            "z", "picks", "by_z", "more_by_measure", "grad", "by_x", "by_w", "by_bias", "by_determinant")),
        *((name, ctypes.c_double) for name in (
            "a", "b", "c", "grown", "length", "constant", "rate", "scale", "kappa", "mean_logit_weight", "form_constant",
            "form_rate", "upstream", "loss", "by_length", "by_scale", "mean_logit", "all_by_length", "all_by_scale")),
        *((name, ctypes.c_int32) for name in ("kind", "link", "domain", "margin", "threads", "lengthened", "absent")),
    )  # fmt: skip


def _at(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()


class _Functions(NamedTuple):
    """Of step.c, in the order of their calls."""

    prepare: Any
    forward: Any
    gradient: Any
    finish: Any


@functools.cache
def _functions() -> _Functions | None:
    found = compiled(SOURCE, HEADERS)
    if found is None:
        return None
    functions = _Functions(*(getattr(found, f"pycls_step_{name}") for name in _Functions._fields))
    for function, result in zip(functions, (ctypes.c_int64, None, ctypes.c_int32, None), strict=True):
        function.argtypes, function.restype = [ctypes.c_void_p], result
    return functions
