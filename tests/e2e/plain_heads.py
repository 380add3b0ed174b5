"""Heads that are ordinary modules, for runs of test_plain_heads.py."""

import torch.nn.functional as F
from torch import Tensor, nn

from pycls.registry import HEADS


class Plain(nn.Module):
    """A linear layer: logits without labels, with labels the loss."""

    def __init__(self, in_features: int, num_classes: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.linear, self.temperature = nn.Linear(in_features, num_classes), temperature

    def logits(self, features: Tensor) -> Tensor:
        return self.linear(features) / self.temperature

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = self.logits(features)
        return logits if labels is None else F.cross_entropy(logits, labels)


@HEADS.register("loss_alone")
def loss_alone(in_features: int, num_classes: int, temperature: float = 1.0) -> nn.Module:
    """A head that returns the loss."""
    return Plain(in_features, num_classes, temperature)


class WithLogits(Plain):
    """The same, which returns logits and loss."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.logits(features)
        return logits if labels is None else (logits, F.cross_entropy(logits, labels))


@HEADS.register("logits_and_loss")
def logits_and_loss(in_features: int, num_classes: int, temperature: float = 1.0) -> nn.Module:
    """A head that returns logits and loss."""
    return WithLogits(in_features, num_classes, temperature)


@HEADS.register("nothing")
def nothing(in_features: int, num_classes: int) -> nn.Module:
    """No head at all."""
    return nn.Linear(in_features, num_classes)
