"""A classifier is a backbone and a head, and nothing else."""

from typing import Any

from torch import Tensor, nn

from pycls.heads.output import head_output


class Classifier(nn.Module):
    """Images -> features (backbone) -> logits and loss (head), as one module whose state is the whole model's.

    Args:
        backbone: images float [N, C, H, W] -> features [N, D].
        head: features [N, D] and labels -> what :func:`pycls.heads.output.head_output` takes.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen_statistics = False
        """Whether the backbone stays in evaluation mode in training, too."""
        self.class_names: list[str] | None = None
        """Names of the classes, from the first on; None where nothing tells them."""

    def freeze_backbone(self, statistics: bool = True) -> None:
        """From now on only the head is trained; batch norm's statistics do not move either, unless they are to."""
        self.backbone.requires_grad_(False)
        self.frozen_statistics = statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Training or evaluation mode; see :attr:`frozen_statistics`."""
        super().train(mode)
        if self.frozen_statistics:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]."""
        return self.backbone(images)

    def logits(self, features: Tensor) -> Tensor:
        """Features [N, D] -> logits [N, K]."""
        logits = head_output(self.head, features).logits
        assert logits is not None, "only training with labels keeps no logits"
        return logits

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 0 on) by the training loop; the head's schedules by epoch follow."""
        if hasattr(self.head, "set_epoch"):
            self.head.set_epoch(epoch)  # type: ignore[operator]

    def forward(self, images: Tensor, labels: Any = None) -> Any:
        """The head's output for images float [N, C, H, W].

        ``labels`` are int64 [N], or a mixture (labels_a [N], labels_b [N], lam), or None for logits without a loss.
        """
        return head_output(self.head, self.backbone(images), labels)
