"""Binary cross entropy: a sigmoid a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pycls.heads.parts import LogitsCriterion
from pycls.registry import CRITERIA


@CRITERIA.register("bce")
class BinaryCrossEntropy(LogitsCriterion):
    """Sum over the classes of ``softplus(z_j) - [j = y] z_j``: one sigmoid a class, as in "ResNet strikes back" (2021).

    Gradients are of the size of a softmax's when the prior of a class is; it is a sum over classes and a mean over samples.
    """

    name = "bce"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[N]."""
        return _SumSoftplus.apply(logits) - logits.gather(1, labels[:, None])[:, 0]


class _SumSoftplus(torch.autograd.Function):
    """Sum over a row of softplus: its gradient is the sigmoid, so that nothing but the logits is kept."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(logits)
        return F.logsigmoid(-logits).sum(dim=1).neg_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (logits,) = ctx.saved_tensors
        return logits.sigmoid().mul_(grad[:, None])
