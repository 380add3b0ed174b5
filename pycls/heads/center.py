"""Centre loss (Wen, Zhang, Li, Qiao, ECCV 2016)."""

from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.parts import Auxiliary
from pycls.heads.snapshot import snapshot
from pycls.ranges import NOT_NEGATIVE, SHARE
from pycls.registry import AUXILIARIES, HEADS

Update = Literal["paper", "gradient"]


class _Distances(torch.autograd.Function):
    """``weight / 2`` times the weighted sum of ``|x_i - c_{y_i}|^2``, scalar. Its gradient is made with it: one array [N, D] to
    keep, and the centres may move before the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, centers: Tensor, labels: Tensor, weights: Tensor, weight: float
    ) -> Tensor:
        gaps = x - snapshot(centers.index_select(0, labels))
        by_x = gaps * (weight * weights)[:, None]
        ctx.save_for_backward(by_x, labels)
        ctx.classes = len(centers)
        return torch.dot(gaps.flatten(), by_x.flatten()) / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_x, labels = ctx.saved_tensors
        by_x = by_x * grad
        by_centers = None
        if ctx.needs_input_grad[1]:
            by_centers = by_x.new_zeros(ctx.classes, by_x.shape[1]).index_add_(0, labels, by_x, alpha=-1)
        return by_x, by_centers, None, None, None


@AUXILIARIES.register("center")
class CenterLoss(Auxiliary):
    """``weight / 2`` times the mean over the batch of ``|x_i - c_{y_i}|^2``; the centres follow their classes.

    The paper's equation 2 sums over the batch; the mean keeps the balance with the cross entropy, which is a mean too,
    at any batch size. After each training step the centres move by the paper's equation 4:
    ``c_j <- c_j - rate sum_{y_i = j} (c_j - x_i) / (1 + n_j)``, over the batch of all processes. In the gradient form they
    are parameters instead, which the optimiser moves by the loss's gradient.

    Args:
        in_features: D.
        num_classes: K.
        weight: lambda of the paper.
        center_rate: alpha of the paper, in [0, 1].
        update: the paper's rule, or the gradient form.

    Raises:
        ValueError: if weight is negative or center_rate outside [0, 1].
    """

    term = "center"
    name = "center"
    centers: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        weight: Annotated[float, NOT_NEGATIVE] = 0.003,
        center_rate: Annotated[float, SHARE] = 0.5,
        update: Update = "paper",
    ) -> None:
        super().__init__()
        self.weight, self.center_rate = weight, center_rate
        self.by_paper = update == "paper"
        if self.by_paper:
            self.register_buffer("centers", torch.zeros(num_classes, in_features))
        else:
            self.centers = nn.Parameter(torch.zeros(num_classes, in_features))

    def class_rows(self) -> list[str]:
        """The centres."""
        return ["centers"]

    def forward(self, features: Tensor, labels: Tensor, logit: Tensor, weights: Tensor) -> Tensor:
        """Equation 2, as a mean."""
        loss: Tensor = _Distances.apply(features, self.centers, labels, weights, self.weight)
        return loss

    def update(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Equation 4; a mixture counts by its shares. Only the batch's own rows are touched."""
        if not self.by_paper:
            return
        if dist.is_available() and dist.is_initialized():
            features, labels, weights = (gathered(t) for t in (features, labels, weights))
        counts = features.new_ones(len(self.centers)).index_add_(0, labels, weights)
        rates = self.center_rate * weights / counts.index_select(0, labels)
        moves = (features - self.centers.index_select(0, labels)).mul_(rates[:, None])
        self.centers.index_add_(0, labels, moves)

    def extra_repr(self) -> str:
        """weight, center_rate."""
        return f"weight={self.weight}, " + (f"center_rate={self.center_rate}" if self.by_paper else "gradient form")


def gathered(values: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; each has as many."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


@HEADS.register("center")
def center(
    in_features: int,
    num_classes: int,
    weight: Annotated[float, NOT_NEGATIVE] = 0.003,
    center_rate: Annotated[float, SHARE] = 0.5,
    update: Update = "paper",
) -> Head:
    """Softmax with centre loss: ``L_S + lambda / 2 |x_i - c_y|^2`` (Wen et al., ECCV 2016, equation 5).

    Args:
        in_features: D.
        num_classes: K.
        weight: lambda.
        center_rate: alpha, the centres' own learning rate.
        update: the paper's rule, or the gradient form.
    """
    centers = CenterLoss(in_features, num_classes, weight, center_rate, update)
    return Head(Linear(in_features, num_classes), None, CrossEntropy(), [centers])
