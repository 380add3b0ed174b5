"""Counts against pycls's published table, against counting by hand, and without touching the model."""

import pytest
import torch
from torch import Tensor, nn

from pycls.models import Classifier, create_model
from pycls.models.complexity import complexity
from pycls.models.resnets import ResNet


class RawHead(nn.Module):
    """A head that keeps prototypes as a raw parameter and a layer inside that is already in its own count."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))
        self.inner = nn.Linear(in_features, in_features, bias=False)

    def complexity(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        assert input_shape == (1, self.weight.shape[1])
        return self.weight.numel(), self.weight.shape[0]

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inner(features) @ self.weight.t()


@pytest.mark.parametrize(
    ("depth", "options", "flops", "params", "acts"),
    [
        (50, {}, 4_089_185_256, 25_557_032, 11_315_688),  # the Model Zoo's R-50
        # R-101 has 17 more bottlenecks of 1114112 x 14 x 14 multiply-adds in its third stage
        (101, {}, 4_089_185_256 + 17 * 1_114_112 * 196, 44_549_160, 11_315_688 + 17 * 1_536 * 196),
    ],
)
def test_pyclss_numbers(depth: int, options: dict[str, int], flops: int, params: int, acts: int) -> None:
    with torch.device("meta"):
        backbone = ResNet(3, 224, depth=depth, stride_1x1=False, **options)
        model = nn.Sequential(backbone, nn.Linear(2048, 1000))
    assert complexity(model, 3, 224) == (flops, params, acts)


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2),  # 9 x 4 x 6 x 100 / 2 + 600 = 11,400; 600 acts
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 6 x 25 = 150 acts
        nn.Conv2d(6, 5, (1, 3), stride=2, bias=False),  # 3 x 6 x 5 x (3 x 2) = 540; 30 acts
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),  # 35 + 7; 7 acts
    )
    params = (6 * 2 * 9 + 6) + 12 + 90 + 42
    assert complexity(net, 4, 10) == (11_400 + 540 + 42, params, 600 + 150 + 30 + 7)


def test_a_layer_used_twice_costs_twice_and_is_stored_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    assert complexity(nn.Sequential(layer, layer), 3, 2) == (2 * 36, 9, 2 * 12)


def test_a_module_may_say_what_it_costs() -> None:
    model = Classifier(ResNet(3, 32, depth=8), RawHead(64, 11))
    backbone = complexity(model.backbone, 3, 32)
    whole = complexity(model, 3, 32)
    assert whole.flops - backbone.flops == 64 * 11
    assert whole.acts - backbone.acts == 11
    assert whole.params - backbone.params == 64 * 11 + 64 * 64


@pytest.mark.parametrize(("head", "extra"), [("softmax", 10), ("rbf_softmax", 0), ("cosface", 0)])
def test_heads_count_as_linear_layers(head: str, extra: int) -> None:
    model = create_model("lenet5", 10, head)
    backbone, whole = complexity(model.backbone, 1, 28), complexity(model, 1, 28)
    assert whole.flops - backbone.flops == 5_000 + extra
    assert whole.acts - backbone.acts == 10


def test_nothing_to_count() -> None:
    assert complexity(nn.Flatten(), 1, 8) == (0, 0, 0)


def test_the_model_stays_as_it_was() -> None:
    model = ResNet(3, 32, depth=8).train()
    model.stem.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    complexity(model, 3, 32)
    assert model.training
    assert not model.stem.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: object) -> None:
        raise AssertionError("a weight was copied")

    model = Classifier(ResNet(3, 32, depth=8), RawHead(64, 11))
    monkeypatch.setattr(Tensor, "__deepcopy__", copied)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", copied)
    assert complexity(model, 3, 32).flops > 0
