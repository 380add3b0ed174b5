"""The classifier hands features and labels on, unchanged, and owns the state of both its parts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pycls.models.classifier import Classifier


class Output(NamedTuple):
    logits: Tensor
    labels: Any


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("step", torch.zeros(()))

    def forward(self, features: Tensor, labels: Any = None) -> Output:
        return Output(features @ self.weight.t(), labels)


def test_classifier_is_backbone_then_head() -> None:
    backbone, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), Head()
    model = Classifier(backbone, head)
    images = torch.randn(5, 3, 2, 2)
    assert torch.equal(model.features(images), backbone(images))
    output = model(images)
    assert output.labels is None
    assert torch.equal(output.logits, backbone(images) @ head.weight.t())
    mixture = (torch.zeros(5), torch.ones(5), 0.3)
    assert model(images, mixture).labels is mixture
    assert set(model.state_dict()) == {"backbone.1.weight", "backbone.1.bias", "head.weight", "head.step"}
    model(images).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
