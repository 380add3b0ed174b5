"""Which samples an epoch shows, and how often: pure functions of (seed, epoch), cut into global batches by the loader.

A sampler gives *draws*: draw ``d`` of a set of n is sample ``d % n``, shown for the ``d // n``-th time more in this epoch.
What a sample is augmented by is a function of its draw, so no two showings are alike.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pycls.data import rng

_CLASS, _MEMBER, _ROUND, _TURN, _OFFSET = range(300, 305)  # streams of this file


class Sampler(ABC):
    """The draws of each epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Draws in an epoch, the same in every one."""

    @abstractmethod
    def draws(self, seed: int, epoch: int) -> Tensor:
        """Those of an epoch, in order: int64 ``[len(self)]``."""


class InstanceSampler(Sampler):
    """Every sample once, in random order.

    Args:
        n: samples of the training set.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def draws(self, seed: int, epoch: int) -> Tensor:
        """A permutation."""
        return rng.permutation(self.n, seed, epoch)


class RepeatedSampler(Sampler):
    """Repeated augmentation: each draw of another sampler some times in a row (Hoffer et al., CVPR 2020; Touvron et al., 2021).

    An epoch stays as long as it was, and so shows as many fewer samples.

    Args:
        sampler: the other one.
        n: samples of the training set.
        repeats: showings in a row, each augmented in its own way.
    """

    def __init__(self, sampler: Sampler, n: int, repeats: int) -> None:
        self._sampler, self._n, self._repeats = sampler, n, repeats

    def __len__(self) -> int:
        return len(self._sampler)

    def draws(self, seed: int, epoch: int) -> Tensor:
        """Those of the other sampler, repeated."""
        first = self._sampler.draws(seed, epoch)[: -(-len(self) // self._repeats), None]
        sample, turn = first % self._n, first // self._n
        return (sample + self._n * (turn * self._repeats + torch.arange(self._repeats))).view(-1)[: len(self)]


class _ByClass(Sampler):
    """What samplers by class look up. Classes without a sample do not count.

    Args:
        labels: of the training set, int64 ``[n]``, each from 0 on.
    """

    def __init__(self, labels: Tensor) -> None:
        self.n = len(labels)
        counts = torch.bincount(labels)
        present = counts.nonzero()[:, 0]
        self._members = labels.argsort(stable=True)  # class by class
        self._first = (counts.cumsum(0) - counts)[present]
        self._sizes = counts[present]


class ClassAwareSampler(_ByClass):
    """Cycles through the classes, shuffled again in each round, and shows some images of each (Shen et al., ECCV 2016).

    Within a class all images are shown before any is shown again. An epoch has as many draws as the largest class has
    images, for every class.

    Args:
        labels: of the training set, int64 ``[n]``.
        per_class: images of a class in a row.
    """

    def __init__(self, labels: Tensor, per_class: int = 4) -> None:
        super().__init__(labels)
        if per_class < 1:
            raise ValueError(f"a class-aware sampler shows 1 or more images of a class in a row, not {per_class}")
        self.per_class = per_class

    def __len__(self) -> int:
        return int(self._sizes.max()) * len(self._sizes)

    def draws(self, seed: int, epoch: int) -> Tensor:
        """Rounds of all classes, ``per_class`` draws of each."""
        classes = len(self._sizes)
        rounds = -(-len(self) // (classes * self.per_class))
        order = rng.hash64(seed, epoch, torch.arange(rounds * classes), _ROUND).view(rounds, classes).argsort(stable=True)
        of_class = self._of_classes(seed, epoch, rounds * self.per_class).view(classes, rounds, self.per_class)
        return of_class[order, torch.arange(rounds)[:, None]].view(-1)[: len(self)]

    def _of_classes(self, seed: int, epoch: int, count: int) -> Tensor:
        """The first ``count`` draws of each class: int64 ``[classes, count]``. Each turn of a class is a permutation."""
        turns = -(-count // self._sizes)
        of_turn = torch.arange(len(turns)).repeat_interleave(turns)  # class of each turn of each class
        turn = torch.arange(len(of_turn)) - (turns.cumsum(0) - turns)[of_turn]
        sizes = self._sizes[of_turn]
        starts = sizes.cumsum(0) - sizes
        place = torch.arange(len(of_turn)).repeat_interleave(sizes)
        member = self._members[self._first[of_turn][place] + torch.arange(len(place)) - starts[place]]
        draws = member + self.n * turn[place]
        by_hash = rng.hash64(seed, epoch, draws, _TURN).argsort(stable=True)
        shuffled = draws[by_hash[place[by_hash].argsort(stable=True)]]
        first_of_class = starts[turns.cumsum(0) - turns]
        return shuffled[first_of_class[:, None] + torch.arange(count)]


class PowerSampler(_ByClass):
    """A class with a probability proportional to its size to the power q, then one of its images; n draws an epoch.

    Kang et al., "Decoupling representation and classifier" (ICLR 2020), equation 1: q = 0 is class-balanced, 1/2 the square
    root, 1 sampling by instance (with replacement).

    Args:
        labels: of the training set, int64 ``[n]``.
        power: q, from 0 on.
    """

    def __init__(self, labels: Tensor, power: float) -> None:
        super().__init__(labels)
        weights = self._sizes.to(torch.float64) ** power
        self._bounds = (weights / weights.sum()).cumsum(0)[:-1].contiguous()

    def __len__(self) -> int:
        return self.n

    def draws(self, seed: int, epoch: int) -> Tensor:
        """With replacement; a sample's second showing is another draw than its first."""
        numbers = torch.arange(self.n)
        classes = torch.searchsorted(self._bounds, rng.uniform(seed, epoch, numbers, _CLASS, torch.float64), right=True)
        inside = (rng.uniform(seed, epoch, numbers, _MEMBER, torch.float64) * self._sizes[classes]).long()
        return _numbered(self._members[self._first[classes] + inside], self.n)


class RepeatFactorSampler(Sampler):
    """Every sample max(1, sqrt(t / f)) times on average, f the share of its class (Gupta et al., LVIS, CVPR 2019, 5.1).

    The fraction is rounded at random in every epoch, so that a sample is shown as often as it should be in the long run, and
    an epoch has always the same length.

    Args:
        labels: of the training set, int64 ``[n]``.
        threshold: t; classes with a larger share are not repeated.
    """

    def __init__(self, labels: Tensor, threshold: float) -> None:
        if not threshold > 0:
            raise ValueError(f"the threshold of repeat-factor sampling is above 0, not {threshold}")
        self.n = len(labels)
        share = torch.bincount(labels)[labels].to(torch.float64) / self.n
        self._factors = (threshold / share).sqrt().clamp(min=1)

    def __len__(self) -> int:
        return int(self._factors.sum() + 1e-6)

    def draws(self, seed: int, epoch: int) -> Tensor:
        """All repetitions, shuffled."""
        order = rng.permutation(self.n, seed, epoch, _ROUND)
        reached = self._factors[order].cumsum(0) + rng.uniform_one(seed, epoch, 0, _OFFSET)
        reached[-1] += 1e-6  # the sum's own rounding must not lose the last one
        times = reached.long().diff(prepend=torch.zeros(1, dtype=torch.int64))
        draws = _numbered(order.repeat_interleave(times), self.n)
        return draws[rng.hash64(seed, epoch, draws, rng.ORDER).argsort(stable=True)][: len(self)]


def _numbered(ids: Tensor, n: int) -> Tensor:
    """Draws from samples with repetitions: the k-th time that a sample comes is draw ``id + k * n``."""
    order = ids.argsort(stable=True)
    counts = torch.bincount(ids, minlength=n)
    turn = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[ids[order]]
    return ids.scatter_add(0, order, n * turn)


def make_sampler(name: str, labels: Tensor, per_class: int = 4, threshold: float = 1e-3) -> Sampler:
    """The sampler of this name: instance, class_aware, class_balanced, square_root or repeat_factor.

    Args:
        name: one of these, else ``ValueError``.
        labels: of the training set, int64 ``[n]``.
        per_class: class_aware: images of a class in a row.
        threshold: repeat_factor: the share of the set from which on a class is not repeated.
    """
    if name == "instance":
        return InstanceSampler(len(labels))
    if name == "class_aware":
        return ClassAwareSampler(labels, per_class)
    if name == "repeat_factor":
        return RepeatFactorSampler(labels, threshold)
    powers = {"class_balanced": 0.0, "square_root": 0.5}
    if name not in powers:
        raise ValueError(f"there is no sampler {name!r}")
    return PowerSampler(labels, powers[name])
