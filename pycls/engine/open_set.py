"""Open-set recognition: scores that should be high for known classes and low for others, and how well they separate."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SCORES = ("max_softmax", "energy", "nearest_prototype")


def known_scores(logits: Tensor, similarity: Tensor) -> dict[str, Tensor]:
    """A number a sample, higher for what looks like a known class, by name.

    ``max_softmax``: the largest probability (Hendrycks and Gimpel, ICLR 2017). ``energy``: log-sum-exp of the logits, the
    negative free energy (Liu et al., NeurIPS 2020). ``nearest_prototype``: minus the squared distance, or the cosine, to the
    nearest prototype, as the head's similarity is defined.

    Args:
        logits: [N, K].
        similarity: [N, K], see :func:`similarity_to_prototypes`.
    """
    logits = logits.float()
    return {
        "max_softmax": logits.softmax(dim=1).amax(dim=1),
        "energy": logits.logsumexp(dim=1),
        "nearest_prototype": similarity.amax(dim=1),
    }


def similarity_to_prototypes(features: Tensor, weight: Tensor, distance: bool) -> Tensor:
    """[N, rows]: minus the squared distance of features [N, D] to each prototype, or their cosine."""
    features, weight = features.float(), weight.float()
    if distance:
        return -torch.cdist(features, weight).square()
    normalize = torch.nn.functional.normalize
    return normalize(features, dim=1) @ normalize(weight, dim=1).t()


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Probability that a known sample scores above an unknown one, ties half: the area under the ROC curve, 0..1."""
    if not len(known) or not len(unknown):
        raise ValueError("AUROC needs samples of both kinds")
    unknown, known = unknown.double().sort().values, known.double()
    below = torch.searchsorted(unknown, known, side="left")
    up_to = torch.searchsorted(unknown, known, side="right")
    return float((below + up_to).double().mean() / (2 * len(unknown)))


def fpr_at_95(known: Tensor, unknown: Tensor) -> float:
    """Share of the unknown samples that pass the threshold which 95 % of the known ones pass, 0..1."""
    if not len(known) or not len(unknown):
        raise ValueError("FPR95 needs samples of both kinds")
    threshold = known.double().sort().values[int(0.05 * len(known))]
    return float((unknown.double() >= threshold).double().mean())


@torch.no_grad()
def score_all(model: Any, batches: Iterable[Any]) -> dict[str, Tensor]:
    """:func:`known_scores` of every sample, on the CPU."""
    model.eval()
    similarity = model.head.similarity
    found: dict[str, list[Tensor]] = {}
    for images, _, _ in batches:
        features = model.features(images)
        near = similarity_to_prototypes(features, similarity.weight, similarity.domain == "distance")
        for name, scores in known_scores(model.logits(features), near).items():
            found.setdefault(name, []).append(scores.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def separation(known: dict[str, Tensor], unknown: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """How well each score separates known from unknown samples: ``{score: {"auroc": .., "fpr95": ..}}``, each 0..1."""
    return {name: {"auroc": auroc(known[name], unknown[name]), "fpr95": fpr_at_95(known[name], unknown[name])}
            for name in known}  # fmt: skip
