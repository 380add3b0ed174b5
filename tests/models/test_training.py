"""Every family trains and evaluates two steps in channels-last order, under bf16 autocast, and compiled (M5)."""

import pytest
import torch
from test_backbones import LIGHT

from pycls.models import Classifier, create_model

ADAPTED = [("timm", "test_resnet"), ("timm", "test_vit"), ("timm", "test_convnext"), ("torchvision", "shufflenet_v2_x0_5"),
           ("torchvision", "mobilenet_v3_small"), ("torchvision", "squeezenet1_1")]  # fmt: skip
FAMILIES = ["anynet", "regnet", "resnet", "effnet", "vit", "densenet"]
CASES = [pytest.param(family, LIGHT.get(family, {"depth": 8}), id=family) for family in FAMILIES]
CASES += [pytest.param(package, {"name": name}, id=f"{package} {name}") for package, name in ADAPTED]


def make(family: str, options: dict[str, object]) -> Classifier:
    if family in ("timm", "torchvision"):
        pytest.importorskip(family, reason="an optional package")
    torch.manual_seed(0)
    model = create_model(family, 4, head="cosface", image_size=32, **options)
    return model.to(memory_format=torch.channels_last)


def two_steps(model: Classifier) -> torch.Tensor:
    """Trains two steps under bf16 autocast and gives evaluation logits."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(images)
        loss = model.head(features, labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert not all(torch.equal(p, before[name]) for name, p in model.backbone.named_parameters(prefix="backbone"))
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = model.features(images)
    assert features.dtype in (torch.bfloat16, torch.float32)
    logits = model.head(features).logits
    assert logits.isfinite().all()
    return logits


@pytest.mark.parametrize(("family", "options"), CASES)
def test_two_steps_in_bf16_and_channels_last(family: str, options: dict[str, object]) -> None:
    assert two_steps(make(family, options)).shape == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), CASES)
def test_two_steps_compiled(family: str, options: dict[str, object]) -> None:
    model = make(family, options)
    model.backbone.compile()
    assert two_steps(model).shape == (4, 4)


def test_two_steps_as_one_graph() -> None:
    """The graphs of the compiler, forward and backward, without the time that its C++ takes."""
    model = make("regnet", LIGHT["regnet"])
    model.backbone.compile(fullgraph=True, backend="aot_eager")
    assert two_steps(model).shape == (4, 4)
