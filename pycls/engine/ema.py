"""Exponential moving average of the whole model, head and batch-norm statistics included."""

import copy

import torch
from torch import nn


class Ema:
    """``average <- average + alpha (model - average)``, every ``period`` steps.

    Args:
        model: the model averaged; the average starts as its copy.
        alpha: share of the newest weights in one update, in (0, 1].
        period: steps between updates.
    """

    def __init__(self, model: nn.Module, alpha: float, period: int) -> None:
        self.alpha, self.period = alpha, period
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        ours, theirs = self.model.state_dict(), model.state_dict()
        averaged = [name for name, value in ours.items() if value.is_floating_point()]
        self._averages, self._sources = [ours[n] for n in averaged], [theirs[n] for n in averaged]
        self._copies = [(ours[n], theirs[n]) for n in ours if not ours[n].is_floating_point()]

    @staticmethod
    def share(ema_alpha: float, batch_size: int, max_epoch: int, period: int) -> float:
        """pycls's alpha of one update: ``EMA_ALPHA * BATCH_SIZE / MAX_EPOCH * period``, at most 1."""
        return min(1.0, ema_alpha * batch_size / max(max_epoch, 1) * period)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Called after every step with the number of steps done."""
        if step % self.period:
            return
        torch._foreach_lerp_(self._averages, self._sources, self.alpha)
        for ours, theirs in self._copies:
            ours.copy_(theirs)
