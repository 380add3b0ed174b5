"""The reference of each head in the registry: which formulas make it up, and how samples become a batch's loss.

``REFERENCES[name]`` says what an entry's numbers must be; :func:`evaluate` runs it sample by sample in float64. The
parameters are a mapping of float64 tensors by the names of the public contract (``weight``, ``bias``, ``centers``,
``log_variance``), with the one learned scalar under ``scale`` (a softplus's argument where the paper says so) or
``radius``. Gradients are autograd's through the loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import reference_auxiliaries as auxiliaries
import reference_criteria as criteria
import reference_similarities as similarities
import torch
from reference_auxiliaries import Auxiliary
from torch import Tensor

Parameters = Mapping[str, Tensor]
Options = Mapping[str, Any]
Labels = Sequence[int] | tuple[Sequence[int], Sequence[int], float | Sequence[float]]


@dataclass(frozen=True)
class Reference:
    """What one head is.

    Attributes:
        logits: a sample's logits at inference, [K].
        target: the target's logit in training, where the head has a margin.
        criterion: a sample's loss from its logits and class.
        training_criterion: the same in training, where that differs.
        auxiliaries: further losses of the batch, by the name of their term.
        scalar: the name here of the head's one learned scalar, or None.
    """

    logits: Callable[[Tensor, Parameters, Options], Tensor]
    target: Callable[[Tensor, int, Parameters, Options, int], Tensor] | None = None
    criterion: Callable[[Tensor, int, Options], Tensor] = criteria.cross_entropy
    training_criterion: Callable[[Tensor, int, Options], Tensor] | None = None
    auxiliaries: tuple[Auxiliary, ...] = ()
    scalar: str | None = None


REFERENCES: dict[str, Reference] = {
    "softmax": Reference(similarities.linear),
    "lws": Reference(similarities.scaled_linear),
    "normface": Reference(similarities.learned_cosine, scalar="scale"),
    "cosloss": Reference(similarities.cosloss, scalar="scale"),
    "coco": Reference(similarities.fixed_cosine),
    "lsoftmax": Reference(similarities.linear, similarities.lsoftmax_target),
    "sphereface": Reference(similarities.feature_cosine, similarities.sphereface_target),
    "cosface": Reference(similarities.fixed_cosine, similarities.cosface_target),
    "arcface": Reference(similarities.fixed_cosine, similarities.arcface_target),
    "combined": Reference(similarities.fixed_cosine, similarities.combined_target),
    "subcenter_arcface": Reference(similarities.subcentre_cosine, similarities.subcentre_target),
    "rbf_softmax": Reference(similarities.rbf),
    "tvmf": Reference(similarities.tvmf, scalar="scale"),
    "lgm": Reference(similarities.gaussian, similarities.gaussian_target, auxiliaries=(auxiliaries.likelihood,)),
    "center": Reference(similarities.linear, auxiliaries=(auxiliaries.centre,)),
    "ring": Reference(similarities.linear, auxiliaries=(auxiliaries.ring,), scalar="radius"),
    "smooth_topk": Reference(similarities.linear, criterion=criteria.smooth_topk),
    "hard_topk": Reference(similarities.linear, criterion=criteria.hard_topk),
    "ldam": Reference(similarities.fixed_cosine, similarities.ldam_target),
    "logit_adjustment": Reference(similarities.linear, training_criterion=criteria.adjusted),
    "balanced_softmax": Reference(similarities.linear, training_criterion=criteria.balanced),
}


@dataclass(frozen=True)
class Result:
    """Loss (scalar) and logits [N, K] without margin, float64."""

    loss: Tensor
    logits: Tensor


def _training_logits(ref: Reference, x: Tensor, y: int, p: Parameters, o: Options, step: int, clean: Tensor) -> Tensor:
    if ref.target is None:
        return clean
    return torch.cat([clean[:y], ref.target(x, y, p, o, step)[None], clean[y + 1 :]])


def _share(
    ref: Reference, x: Tensor, labels: Sequence[int], shares: Sequence[float], p: Parameters, o: Options,
    training: bool, step: int, clean: Sequence[Tensor],
) -> Tensor:
    """The mean over the samples with a class of share times criterion, plus the auxiliaries of those samples."""
    criterion = (ref.training_criterion if training else None) or ref.criterion
    samples, total, weight = [], torch.zeros((), dtype=torch.float64), 0.0
    for i, (y, share) in enumerate(zip(labels, shares, strict=True)):
        if y < 0:
            continue
        z = _training_logits(ref, x[i], y, p, o, step, clean[i]) if training else clean[i]
        total = total + share * criterion(z, y, o)
        weight += o["class_weights"][y] if o.get("class_weights") else 1.0
        samples.append((x[i], y, share))
    if not samples:
        return total
    return total / weight + sum(auxiliary(samples, p, o) for auxiliary in ref.auxiliaries)


def evaluate(
    name: str | Reference,
    features: Tensor,
    labels: Labels,
    parameters: Parameters,
    options: Options,
    training: bool = True,
    step: int = 0,
) -> Result:
    """The head's result for a batch, sample by sample.

    Args:
        name: an entry of ``REFERENCES``, or a composition of one's own.
        features: [N, D], float64.
        labels: N classes (-1: none), or ``(labels_a, labels_b, lam)``: sample i's loss is lam_i of the loss with its
            first class and 1 - lam_i of that with its second; lam is one number or N.
        parameters: the head's tensors in float64, by name.
        options: the constructor's options, all of them.
        training: with the margin, or without.
        step: training passes before this one.
    """
    ref = REFERENCES[name] if isinstance(name, str) else name
    clean = [ref.logits(x, parameters, options) for x in features]
    arguments = (parameters, options, training, step, clean)
    if isinstance(labels, tuple):
        first, second, lam = labels
        shares = list(lam) if isinstance(lam, Sequence) else [lam] * len(first)
        rest = [1 - share for share in shares]
        loss = _share(ref, features, first, shares, *arguments) + _share(ref, features, second, rest, *arguments)
    else:
        loss = _share(ref, features, labels, [1.0] * len(labels), *arguments)
    return Result(loss, torch.stack(clean))
