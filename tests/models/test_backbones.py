"""What every backbone promises, asked of each name in the registry, so that a new one is tested on arrival."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycls.config.components import GIVEN
from pycls.registry import MODELS

LIGHT: dict[str, dict[str, object]] = {
    "wrn": {"depth": 10, "widen_factor": 2},
    "anynet": {"stem_w": 16, "se_r": 0.5, "depths": (1, 2), "widths": (16, 32), "strides": (1, 2), "bot_muls": (0.5, 1.0),
               "group_ws": (4, 8), "se_on": True, "head_w": 24},
    "regnet": {"depth": 6, "w0": 16, "wa": 8.0, "wm": 2.0, "group_w": 8, "stem_w": 16, "se_on": True,
               "se_r": 0.5},
    "effnet": {"stem_w": 16, "depths": (1, 2), "widths": (16, 24), "exp_ratios": (1, 4), "strides": (1, 2),
               "kernels": (3, 5), "head_w": 48},
    "densenet": {"depth": 16, "growth_rate": 8},
    "vit": {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64},
}  # fmt: skip
"""Options that keep a test fast where the defaults are heavy, or that have no defaults."""

SUPPLIED = {*GIVEN[MODELS]}

OURS = [name for name in MODELS.names() if name not in ("timm", "torchvision")]
"""The adapters' nets are others': test_adapters.py has what is promised of them."""


def build(name: str, in_channels: int = 1, image_size: int = 28, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.get(name)(in_channels=in_channels, image_size=image_size, **{**LIGHT.get(name, {}), **options})


def works_at(name: str) -> int:
    """The smallest of these sides that the net takes."""
    for side in (8, 16, 32, 64):
        try:
            build(name, image_size=side)
            return side
        except ValueError:
            continue
    raise AssertionError(f"{name} takes no images of up to 64 x 64")


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 9, 23, 28, 32, 64])
@pytest.mark.parametrize("name", OURS)
def test_features_or_a_clear_refusal(name: str, image_size: int, in_channels: int) -> None:
    if image_size < works_at(name):
        with pytest.raises(ValueError, match=f"at least .* these are {image_size} x {image_size}"):
            build(name, in_channels, image_size)
        return
    if name == "vit" and image_size % 4:
        with pytest.raises(ValueError, match=f"multiple of patch_size 4, not {image_size}"):
            build(name, in_channels, image_size)
        return
    net = build(name, in_channels, image_size).eval()
    features = net(torch.randn(2, in_channels, image_size, image_size))
    assert features.shape == (2, net.feature_dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("image_size", [1, 4, 7])
@pytest.mark.parametrize("name", OURS)
def test_too_small_images_are_refused_at_construction(name: str, image_size: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.* needs images of at least .* these are {image_size} x {image_size}"):
        build(name, 3, image_size)


@pytest.mark.parametrize("name", OURS)
def test_no_channels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1 channel"):
        build(name, 0, 64)


@pytest.mark.parametrize("name", OURS)
def test_gradients_reach_every_parameter(name: str) -> None:
    side = works_at(name)
    net = build(name, 3, side).train()
    features = net(torch.randn(4, 3, side, side))
    (features * torch.randn_like(features)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", OURS)
def test_memory_order_does_not_change_the_features(name: str) -> None:
    side = works_at(name)
    net = build(name, 3, side).double().eval()
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    plain = net(images)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(images.to(memory_format=torch.channels_last)), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OURS)
def test_same_seed_same_net(name: str) -> None:
    side = works_at(name)
    one, two = build(name, 1, side).state_dict(), build(name, 1, side).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", OURS)
def test_it_learns(name: str) -> None:
    """Sixteen random images with random labels are learnt by heart: nothing in the net blocks the way."""
    side = works_at(name)
    net = build(name, 1, side).train()
    head = nn.Linear(net.feature_dim, 4)
    images, labels = torch.randn(16, 1, side, side), torch.arange(16) % 4
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(100):
        loss = F.cross_entropy(head(net(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.7:  # 1.39 by chance
            return
    pytest.fail(f"the loss is still {loss.item()}")


@pytest.mark.parametrize("name", MODELS.names())
def test_every_option_is_plain_typed_and_documented(name: str) -> None:
    component = MODELS.get(name)
    documentation = (inspect.getdoc(component) or "").partition("Args:")[2]
    for parameter in inspect.signature(component).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        assert f"\n    {parameter.name}: " in documentation, parameter.name
        assert parameter.name in SUPPLIED or parameter.default is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("name", [n for n in OURS if "bn_eps" in inspect.signature(MODELS.get(n)).parameters])
def test_batch_norm_settings_reach_every_batch_norm(name: str) -> None:
    stem = {"stem_type": "conv", "c_stem_kernels": (3, 1), "c_stem_strides": (4, 1), "c_stem_dims": (8, 32)}
    options = {"lenet5": {"batch_norm": True}, "vit": stem}.get(name, {})
    net = build(name, 3, 64, bn_eps=2e-3, bn_mom=0.25, **options)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {(m.eps, m.momentum) for m in norms} == {(2e-3, 0.25)}


@pytest.mark.parametrize("name", ["lenet5", "lenetspp", "lsoftmax_mnist", "lsoftmax_fig2", "vit"])
def test_another_size_than_the_nets_own_is_named(name: str) -> None:
    net = build(name, 1, 28).eval()
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), these have shape \(1, 32, 32\)"):
        net(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), these have shape \(3, 28, 28\)"):
        net(torch.zeros(2, 3, 28, 28))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet5", {"conv2_width": 0}, "conv2_width: expected at least 1, found 0"),
        ("lenetspp", {"feature_dim": -1}, "feature_dim: expected at least 1, found -1"),
        ("lsoftmax_mnist", {"width": 0}, "width: expected"),
        ("lsoftmax_fig2", {"feature_dim": 0}, "feature_dim: expected"),
        ("wrn", {"widen_factor": 0}, "widen_factor: expected"),
        ("wrn", {"dropout": 1.0}, "dropout: expected at least 0 and below 1, found 1.0"),
        ("wrn", {"depth": 27}, r"wrn has depths 6 n \+ 4: .* not 27"),
        ("wrn", {"depth": 4}, "not 4"),
    ],
)
def test_impossible_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 1, 28, **options)


@pytest.mark.parametrize(
    ("name", "shape", "options", "count"),
    [
        # Caffe's MNIST LeNet has 431,080, of which its 10-class layer is 5,010
        ("lenet5", (1, 28), {}, 431_080 - 5_010),
        # LeCun's widths by hand: 6 x 25 + 6, 16 x 150 + 16, 84 x 256 + 84
        ("lenet5", (1, 28), {"conv1_width": 6, "conv2_width": 16, "feature_dim": 84}, 156 + 2_416 + 21_588),
        # six convolutions, their slopes and the last one's, 1152 x 2 + 2
        ("lenetspp", (1, 28), {}, 832 + 25_632 + 51_264 + 102_464 + 204_928 + 409_728 + 7 + 2_306),
        ("lsoftmax_mnist", (1, 28), {}, 2 + (640 + 129) + 10 * (36_928 + 129) + 576 * 256 + 256 + 512),
        ("lsoftmax_fig2", (1, 28), {}, 794_848 + 6 + 4 * (32 + 64 + 128) + 2_306 + 4),
        # published with their 10-class layer: WRN-28-10 36.5M, WRN-16-8 11.0M, WRN-40-4 8.9M (table 4 of the paper)
        ("wrn", (3, 32), {"depth": 28, "widen_factor": 10}, 36_479_194 - 6_410),
        ("wrn", (3, 32), {"depth": 16, "widen_factor": 8}, 10_961_370 - 5_130),
        ("wrn", (3, 32), {"depth": 40, "widen_factor": 4}, 8_949_210 - 2_570),
    ],
)
def test_published_sizes(name: str, shape: tuple[int, int], options: dict[str, int], count: int) -> None:
    assert sum(p.numel() for p in build(name, *shape, **options).parameters()) == count


def test_dropout_acts_in_training_only() -> None:
    net = build("wrn", 3, 8, dropout=0.5)
    images = torch.randn(4, 3, 8, 8)
    net.train()
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
