"""Binary cross entropy: a sigmoid a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.heads.parts import LogitsCriterion
from pycls.registry import CRITERIA


@CRITERIA.register("bce")
class BinaryCrossEntropy(LogitsCriterion):
    """Sum over the classes of ``softplus(z_j) - [j = y] z_j``: one sigmoid a class, as in "ResNet strikes back" (2021).

    A sum over the classes and a mean over the samples.
    """

    name = "bce"

    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """[N]."""
        others: Tensor = _OthersSoftplus.apply(logits, labels)
        return others - F.logsigmoid(target)


class _OthersSoftplus(torch.autograd.Function):
    """Sum of softplus over the classes that are not the label: its gradient is the sigmoid, so nothing more is kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(logits, labels)
        return F.logsigmoid(-logits).scatter_(1, labels[:, None], 0).sum(dim=1).neg_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        logits, labels = ctx.saved_tensors
        return logits.sigmoid().scatter_(1, labels[:, None], 0).mul_(grad[:, None]), None
