"""The classifier hands features and labels on, unchanged, and owns the state of both its parts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycls.heads.output import HeadOutput
from pycls.models.classifier import Classifier


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("step", torch.zeros(()))
        self.labels: Any = None

    def forward(self, features: Tensor, labels: Any = None) -> HeadOutput:
        self.labels = labels
        return HeadOutput(features @ self.weight.t())


def test_classifier_is_backbone_then_head() -> None:
    backbone, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), Head()
    model = Classifier(backbone, head)
    images = torch.randn(5, 3, 2, 2)
    assert torch.equal(model.features(images), backbone(images))
    output = model(images)
    assert head.labels is None
    assert torch.equal(output.logits, backbone(images) @ head.weight.t())
    mixture = (torch.zeros(5), torch.ones(5), 0.3)
    model(images, mixture)
    assert head.labels is mixture
    assert set(model.state_dict()) == {"backbone.1.weight", "backbone.1.bias", "head.weight", "head.step"}
    model(images).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("statistics", [True, False])
def test_a_frozen_backbone_trains_no_weight(statistics: bool) -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)), Head())
    model.train().freeze_backbone(statistics)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval().train()
    model(torch.randn(5, 3, 2, 2)).logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistic = {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == (set() if statistics else statistic)
