"""Label noise by the published rules: whether and how a sample's label is wrong is a hash of its id, the same in all runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pycls.data import rng
from pycls.errors import InputError

KINDS = ("none", "symmetric", "pairs", "superclass", "blocks")
BLOCK = 5


def noisy_labels(
    labels: Tensor,
    num_classes: int,
    kind: str,
    rate: float,
    seed: int,
    pairs: Sequence[Sequence[int]] = (),
    superclass: Tensor | None = None,
) -> Tensor:
    """The labels, int64 ``[N]``, of which a share ``rate`` has been drawn again at random.

    - symmetric: any other class, each as likely.
    - pairs: the class that ``pairs`` gives for it; classes without one keep their labels. Without pairs, the next class, the
      last one becoming the first.
    - superclass: another class of its superclass, each as likely.
    - blocks (or adjacent_classes, as an option): ``label - label % 5 + U{0..4}``, the rule of the smooth top-k SVM (Berrada et
      al., ICLR 2018): five consecutive classes, the true one among them, so that a fifth of the redrawn labels is right.

    Args:
        labels: true labels, int64 ``[N]``.
        num_classes: K.
        kind: one of the above.
        rate: probability that a label is drawn again, 0..1.
        seed: of the random numbers.
        pairs: ``(from, to)`` classes.
        superclass: of each class, int64 ``[K]``.
    """
    ids = torch.arange(len(labels))
    chosen = rng.uniform(seed, 0, ids, rng.NOISE, torch.float64) < rate
    number = rng.uniform(seed, 0, ids, rng.NOISE_CLASS, torch.float64)
    if kind == "symmetric":
        drawn = _other(labels, number, torch.zeros(num_classes, dtype=torch.int64))
    elif kind == "pairs":
        drawn = _table(num_classes, pairs)[labels]
    elif kind == "superclass":
        if superclass is None:
            raise InputError("DATA.NOISE.KIND superclass: this data set has no superclasses (cifar100 has)")
        drawn = _other(labels, number, superclass)
    elif kind == "blocks":
        if num_classes % BLOCK:
            raise InputError(f"DATA.NOISE.KIND blocks: {num_classes} classes cannot be divided into blocks of {BLOCK}")
        drawn = labels - labels % BLOCK + (number * BLOCK).long()
    else:
        raise InputError(f"there is no label noise {kind!r}; there are: {', '.join(KINDS)}")
    return torch.where(chosen, drawn, labels)


def _other(labels: Tensor, number: Tensor, group: Tensor) -> Tensor:
    """Another class of the label's group, by a number in [0, 1); the label itself where it has no other."""
    order = group.argsort(stable=True)
    sizes = torch.bincount(group)
    first = (sizes.cumsum(0) - sizes)[group]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place = (place - first)[labels]
    size = sizes[group][labels]
    step = 1 + (number * (size - 1)).long()
    return torch.where(size > 1, order[first[labels] + (place + step) % size], labels)


def _table(num_classes: int, pairs: Sequence[Sequence[int]]) -> Tensor:
    classes = torch.arange(num_classes)
    if not pairs:
        return (classes + 1) % num_classes
    for source, target in pairs:
        if not (0 <= source < num_classes and 0 <= target < num_classes):
            raise InputError(f"DATA.NOISE.PAIRS: [{source}, {target}] is no pair of the classes 0..{num_classes - 1}")
        classes[source] = target
    return classes
