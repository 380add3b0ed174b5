"""What was predicted of each image, and how classes fare by the number of their training images."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pycls.runtime.distributed import gather_objects

MANY, FEW = 100, 20
"""Liu et al., CVPR 2019: classes with more than 100 training images, with 20 to 100, with fewer than 20."""


class Predictions:
    """The likeliest classes of every image of an evaluation.

    Args:
        top_k: how many of them.
    """

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Adds a batch: logits ``[n, K]``, labels ``[n]``, ids ``[n]``."""
        best = logits.float().softmax(dim=1).topk(self._top_k, dim=1)
        self._parts.append((ids, labels.cpu(), best.indices.cpu(), best.values.cpu()))

    def gather(self) -> list[tuple[int, int, list[int], list[float]]]:
        """Of all processes, by id: (id, label, classes from the likeliest on, their probabilities)."""
        rows = [row for part in self._parts for row in zip(*(column.tolist() for column in part), strict=True)]
        return sorted(row for rows in gather_objects(rows) for row in rows)


def by_training_size(result: dict[str, Any], counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Errors of the classes with many, some and few training images.

    Args:
        result: of an evaluation: ``class_samples`` and ``class_errors``.
        counts: training images of each class.

    Returns:
        Group -> ``classes`` that were tested, and ``err``: the mean of their errors in percent, None without a class.
    """
    rates: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for count, samples, errors in zip(counts, result["class_samples"], result["class_errors"], strict=True):
        if samples:
            rates["many" if count > MANY else "few" if count < FEW else "medium"].append(100 * errors / samples)
    return {group: {"classes": len(of), "err": sum(of) / len(of) if of else None} for group, of in rates.items()}
