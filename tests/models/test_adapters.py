"""Models of timm and torchvision as backbones: the same numbers as theirs, widths found, mistakes in a line."""

import sys
from pathlib import Path

import pytest
import torch

from pycls.errors import InputError, RunError
from pycls.models import create_model
from pycls.models.complexity import complexity

TIMM = {"test_resnet": 64, "test_vit": 64, "test_convnext": 64}
TORCHVISION = {"squeezenet1_1": 64, "mobilenet_v3_small": 64, "vit_b_32": 32, "googlenet": 64}


@pytest.mark.parametrize("name", TIMM)
def test_timm_features_are_timms(name: str) -> None:
    timm = pytest.importorskip("timm", reason="an optional package")
    model = create_model("timm", 5, head="cosface", name=name, image_size=TIMM[name]).eval()
    size = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=7, **size).eval()
    own = model.backbone.net.state_dict()
    theirs.load_state_dict({**theirs.state_dict(), **own})
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.features(images), theirs.forward_head(theirs.forward_features(images), pre_logits=True))
    assert model.backbone.feature_dim == model.features(images).shape[1]
    assert model.head.similarity.weight.shape == (5, model.backbone.feature_dim)
    assert complexity(model, 3, 64).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_features_make_torchvisions_logits(name: str) -> None:
    """What was cut off, put on again, gives the whole model's logits."""
    models = pytest.importorskip("torchvision.models", reason="an optional package")
    side = TORCHVISION[name]
    model = create_model("torchvision", 5, name=name, image_size=side).eval()
    options = {"vit_b_32": {"image_size": side}, "googlenet": {"aux_logits": False, "init_weights": False}}
    theirs = models.get_model(name, **options.get(name, {})).eval()
    ends = [m for m in theirs.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    last = ends[-1]
    theirs.load_state_dict({**theirs.state_dict(), **model.backbone.net.state_dict()})
    seen = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        theirs(images)
        features = model.features(images)
    expected = seen[0].relu().mean((2, 3)) if seen[0].ndim == 4 else seen[0]
    torch.testing.assert_close(features, expected)
    assert features.shape == (2, model.backbone.feature_dim)


def test_grey_images_are_repeated() -> None:
    pytest.importorskip("torchvision", reason="an optional package")
    model = create_model("torchvision", 5, name="shufflenet_v2_x0_5", image_size=32, in_channels=1).eval()
    grey = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.features(grey), model.features(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        create_model("torchvision", 5, name="shufflenet_v2_x0_5", in_channels=4)


@pytest.mark.parametrize(
    ("package", "name", "message"),
    [
        ("timm", "convnext_tinny", r"timm has no model named 'convnext_tinny'; did you mean 'convnext_tiny'"),
        ("timm", "qqqq", r"timm has no model named 'qqqq'; it has \d+, such as"),
        ("timm", "", r"TIMM\.NAME must be given"),
        ("torchvision", "resnet5O", r"torchvision has no model named 'resnet5O'; did you mean 'resnet50'"),
        ("torchvision", "fcn_resnet50", "torchvision has no model named 'fcn_resnet50'"),
        ("torchvision", "", r"TORCHVISION\.NAME must be given"),
    ],
)
def test_unknown_names_show_the_nearest(package: str, name: str, message: str) -> None:
    pytest.importorskip(package, reason="an optional package")
    with pytest.raises(InputError, match=message):
        create_model(package, 5, name=name)


@pytest.mark.parametrize(
    ("package", "name", "size"),
    [("timm", "test_vit", 63), *(("torchvision", *case) for case in (("vit_b_32", 63), ("maxvit_t", 72), ("alexnet", 32)))],
)
def test_images_that_do_not_fit(package: str, name: str, size: int) -> None:
    pytest.importorskip(package, reason="an optional package")
    with pytest.raises(ValueError, match=rf"{name} .*{size} x {size}: .") as caught:
        create_model(package, 5, name=name, image_size=size)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"MODEL\.TYPE timm needs the package timm \(pip install timm\)"):
        create_model("timm", 5, name="resnet18")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="an optional package")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    with pytest.raises(RunError, match=r"weights of torchvision's squeezenet1_1 cannot be fetched: .*no network"):
        create_model("torchvision", 5, name="squeezenet1_1", pretrained=True)
    state = models.squeezenet1_1().state_dict()
    monkeypatch.setattr(models.SqueezeNet1_1_Weights, "get_state_dict", lambda *_, **options: options["weights_only"] and state)
    model = create_model("torchvision", 5, name="squeezenet1_1", pretrained=True)
    assert torch.equal(model.backbone.net.features[0].weight, state["features.0.weight"])


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")
