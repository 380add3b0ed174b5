"""Diagnostics of a head: warnings of a scale or margin that cannot work, and statistics of features and prototypes.

They use the head's options or a batch, outside of the training step: at the start, and once a log period.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from pycls.heads.arcface import AdditiveAngle, Combined
from pycls.heads.cosface import AdditiveCosine
from pycls.heads.cosine import Cosine
from pycls.heads.head import Head
from pycls.heads.labels import checked_labels, targets_of
from pycls.heads.long_tail import LabelDistributionMargin
from pycls.heads.multi_angle import MultiAngle
from pycls.heads.ops.loss import moved_logit, transformed
from pycls.heads.parts import norm
from pycls.heads.rbf_softmax import RadialBasis
from pycls.heads.scale import adacos_scale

logger = logging.getLogger(__name__)

REACHABLE = 0.9
"""A head should be able to give its target at least this probability, margin included."""


def static_warnings(head: Head) -> list[str]:
    """Warnings that follow from the head's options and sizes alone, each a line for the log."""
    similarity = head.similarity
    if not isinstance(similarity, Cosine) or similarity.scaling.learning != "fixed":
        return []
    scale, classes, dim = float(similarity.scale), similarity.num_classes, similarity.weight.shape[1]
    warnings = []
    best = best_probability(scale, classes, dim, 0.0)
    if classes > 1 and best < REACHABLE:
        warnings.append(
            f"HEAD.SCALE {scale:g} is too small for {classes} classes: even perfect features get probability {best:.2f}. "
            f"AdaCos suggests {adacos_scale(classes):.1f}"
        )
    shift = cosine_shift(head)
    widest = 1 - least_cosine(classes, dim)
    if shift > widest:
        warnings.append(
            f"the margin lowers the target's cosine by {shift:.2f}, more than the {widest:.2f} that can separate "
            f"{classes} prototypes in {dim} dimensions: it cannot be met"
        )
    elif classes > 1 and best >= REACHABLE > (with_margin := best_probability(scale, classes, dim, shift)):
        warnings.append(
            f"with its margin the target's probability can reach {with_margin:.2f} at most at HEAD.SCALE {scale:g}: "
            "take a larger scale or a smaller margin"
        )
    return warnings


def least_cosine(classes: int, dim: int) -> float:
    """The largest cosine between neighbours of the best-spread prototypes, at least: -1 / (K - 1), or cos(2 pi / K) in 2-D.

    (CosFace, section 3.4. With K > D + 1 in more than two dimensions the bound is not reached; there it is 0.)
    """
    if classes < 2:
        return -1.0
    if dim == 1:
        return -1.0 if classes == 2 else 1.0
    if dim == 2:
        return math.cos(2 * math.pi / classes)
    return -1 / (classes - 1) if classes <= dim + 1 else 0.0


def cosine_shift(head: Head) -> float:
    """By how much the margin lowers the target's cosine of 1."""
    margin = head.margin
    if isinstance(margin, LabelDistributionMargin):
        return margin.max_margin
    if isinstance(margin, AdditiveAngle | AdditiveCosine | Combined):
        one = torch.ones(1, dtype=torch.float64)
        return float(1 - margin(one, torch.zeros(1, dtype=torch.int64)))
    return 0.0


def best_probability(scale: float, classes: int, dim: int, shift: float) -> float:
    """Softmax probability of the target with features on prototypes spread as well as can be."""
    gap = scale * (1 - shift - least_cosine(classes, dim))
    return 1 / (1 + (classes - 1) * math.exp(-gap)) if gap > -700 else 0.0


@torch.no_grad()
def head_stats(head: Head, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Angles and norms of a batch and the prototypes, and margin violations: 0-dim tensors on the batch's device.

    ``angle_own`` and ``angle_nearest`` (degrees, to the own and to the nearest other class's prototype, means),
    ``feature_norm``, ``weight_norm`` (means), ``margin_violations`` (share of the samples whose target, margin included,
    is not first), ``errors_without_margin`` (the same without), and where they exist ``scale``, ``lambda`` and
    ``underflow`` (share of the RBF kernels that are nothing in the logits' precision).

    Args:
        head: any head; its buffers are left alone.
        features: [N, D].
        labels: integers [N]; samples without a target (-1) are left out.

    Returns:
        Statistic -> value; empty for a batch without any target.
    """
    similarity = head.similarity
    labels = targets_of(checked_labels(labels, features), features, similarity.num_classes)[0][:, 0]
    keep = labels >= 0
    weight = similarity.weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    x, y = features.detach()[keep].to(weight.dtype), labels[keep]
    if not len(x):
        return {}
    lengths = weight.norm(dim=1)
    cos = (torch.nn.functional.normalize(x, dim=1) @ weight.t()).div_(lengths.clamp(min=1e-12))  # no copy of the prototypes
    if similarity.spec.num_centers > 1:
        cos = cos.unflatten(1, (similarity.num_classes, -1)).amax(dim=2)
    own = cos.gather(1, y[:, None])[:, 0]
    nearest = cos.scatter(1, y[:, None], -2.0).amax(dim=1)
    found = {
        "angle_own": _degrees(own),
        "angle_nearest": _degrees(nearest),
        "feature_norm": x.norm(dim=1).mean(),
        "weight_norm": lengths.mean(),
    }
    scores = similarity.scores(similarity.inputs(x), y[:, None])
    was_training = head.training
    head.train()  # for the margin; nothing is advanced here
    step, *score_map = head.target_step(scores, norm(x), y, 0)
    head.train(was_training)
    scale = similarity.logit_scale()
    plain, target = transformed(scores.score[0], scale, step.transform), moved_logit(step, scores.score[0], scale, *score_map)
    assert scores.logits is not None, "nothing was asked to be reduced"
    max_other_logit = scores.logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    found["margin_violations"] = (target <= max_other_logit).float().mean()
    found["errors_without_margin"] = (plain <= max_other_logit).float().mean()
    own_scale = getattr(similarity, "scale", None)
    if isinstance(own_scale, Tensor):
        found["scale"] = own_scale.detach().float()
    if isinstance(head.margin, MultiAngle):
        found["lambda"] = torch.as_tensor(head.margin.annealed(torch.float32), device=x.device)
    if isinstance(similarity, RadialBasis):
        found["underflow"] = (scores.logits < 1e-6 * similarity.scale).float().mean()
    return found


def _degrees(cos: Tensor) -> Tensor:
    return torch.rad2deg(cos.clamp(-1, 1).acos()).mean()


class HeadMonitor:
    """Keeps the last training batch of a head for :func:`head_stats`; adds no forward pass.

    Args:
        head: the head.
        samples: of the batch, at the most.
    """

    def __init__(self, head: Head, samples: int = 64) -> None:
        self._head, self._samples = head, samples
        self._batch: tuple[Tensor, Tensor] | None = None
        self._warned: set[str] = set()
        head.register_forward_pre_hook(self._keep)

    def _keep(self, head: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if head.training and len(inputs) > 1 and inputs[1] is not None:
            labels = inputs[1] if isinstance(inputs[1], Tensor) else inputs[1][0]
            self._batch = inputs[0].detach(), labels

    def read(self) -> dict[str, float]:
        """:func:`head_stats` of that batch with the present weights; waits for the device. Each warning is logged once."""
        if self._batch is None:
            return {}
        found = head_stats(self._head, *(tensor[: self._samples] for tensor in self._batch))
        if not found:
            return {}
        numbers = dict(zip(found, torch.stack([v.float() for v in found.values()]).tolist(), strict=True))
        for kind, warning in stat_warnings(numbers).items():
            if kind not in self._warned:
                logger.warning(warning)
            self._warned.add(kind)
        return numbers


def stat_warnings(numbers: dict[str, float]) -> dict[str, str]:
    """Warnings that follow from :func:`head_stats`: kind -> a line for the log."""
    warnings = {}
    if numbers.get("underflow", 0.0) > 0.5:
        warnings["underflow"] = (
            f"{numbers['underflow']:.0%} of the RBF kernels are zero: the features are too far from the prototypes to learn "
            "from. Take a larger HEAD.GAMMA (of the order of the squared distances), or features of a smaller norm"
        )
    if numbers["margin_violations"] == 1.0 and numbers["errors_without_margin"] < 1.0:
        warnings["margin"] = (
            "no sample of the batch meets the margin, though some are right without it: warm it up with "
            "HEAD.MARGIN_WARMUP (steps), or take a smaller one"
        )
    return warnings
