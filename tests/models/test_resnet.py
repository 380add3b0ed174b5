"""ResNet against torchvision's, pycls's names, and its own refusals."""

import re

import pytest
import torch
from torch import nn

from pycls.models.layers.residual import BasicTransform, BottleneckTransform
from pycls.models.resnets import ResNet

RESNEXT = {"num_groups": 32, "width_per_group": 4}


def our_name(name: str) -> str:
    """torchvision's name of a parameter or buffer -> pycls's."""
    name = name.replace("conv1.", "stem.conv.", 1) if name.startswith("conv1.") else name
    name = name.replace("bn1.", "stem.bn.", 1) if name.startswith("bn1.") else name
    name = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.", name)
    name = name.replace("downsample.0.", "proj.").replace("downsample.1.", "bn.")
    name = re.sub(r"\.conv(\d)\.", lambda m: f".f.{'abc'[int(m[1]) - 1]}.", name)
    return re.sub(r"(s\d\.b\d+)\.bn(\d)\.", lambda m: f"{m[1]}.f.{'abc'[int(m[2]) - 1]}_bn.", name)


@pytest.mark.parametrize(
    ("theirs", "depth", "options"),
    [("resnet18", 18, {}), ("resnet34", 34, {}), ("resnet50", 50, {}), ("resnext50_32x4d", 50, RESNEXT)],
)
@pytest.mark.parametrize("training", [False, True])
def test_features_are_torchvisions(theirs: str, depth: int, options: dict[str, int], training: bool) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is the independent implementation")
    torch.manual_seed(0)
    reference = getattr(models, theirs)(weights=None)
    reference.fc = nn.Identity()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net = ResNet(3, 64, depth=depth, stride_1x1=False, **options)
    net.load_state_dict({our_name(name): value for name, value in reference.state_dict().items()})
    images = torch.randn(2, 3, 64, 64).double()
    net, reference = net.requires_grad_(False), reference.requires_grad_(False)
    ours, expected = net.double().train(training)(images), reference.double().train(training)(images)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("depth", "options", "count"),
    [
        # torchvision's counts less its 1000-class layer
        (18, {}, 11_689_512 - 513_000),
        (34, {}, 21_797_672 - 513_000),
        (50, {}, 25_557_032 - 2_049_000),
        (101, {}, 44_549_160 - 2_049_000),
        (152, {}, 60_192_808 - 2_049_000),
        (50, RESNEXT, 25_028_904 - 2_049_000),
        # the paper's 0.27M, 0.46M, 0.66M, 0.85M, 1.7M, with shortcuts that are projections: + 2,752 each
        (20, {}, 269_722 + 2_752 - 650),
        (32, {}, 464_154 + 2_752 - 650),
        (44, {}, 658_586 + 2_752 - 650),
        (56, {}, 853_018 + 2_752 - 650),
        (110, {}, 1_727_962 + 2_752 - 650),
    ],
)
def test_published_sizes(depth: int, options: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        net = ResNet(3, 64, depth=depth, **options)
    assert sum(p.numel() for p in net.parameters()) == count


def test_depth_of_cifar_form_counts_its_layers() -> None:
    for depth in (8, 20, 32):
        net = ResNet(3, 32, depth=depth)
        transforms = [m for m in net.modules() if isinstance(m, BasicTransform)]
        assert 1 + 2 * len(transforms) + 1 == depth
        assert net.feature_dim == 64


def test_names_are_pyclss() -> None:
    keys = set(ResNet(3, 64, depth=50).state_dict())
    assert {"stem.conv.weight", "stem.bn.running_var", "s1.b1.proj.weight", "s1.b1.bn.weight", "s1.b1.f.a.weight",
            "s1.b1.f.a_bn.bias", "s2.b4.f.b.weight", "s3.b6.f.c.weight", "s4.b3.f.c_bn.num_batches_tracked"} <= keys
    form = re.compile(r"(stem\.(conv|bn)|s[1-4]\.b[1-6]\.(proj|bn|f\.[abc](_bn)?))\.\w+")
    assert all(form.fullmatch(key) for key in keys)
    basic = set(ResNet(3, 32, depth=20).state_dict())
    assert not any(key.startswith("s1.b1.proj") for key in basic)  # 16 -> 16 at stride 1 keeps its shape
    assert {"s2.b1.proj.weight", "s3.b3.f.b_bn.weight"} <= basic
    assert not any(".f.c" in key for key in basic)


@pytest.mark.parametrize("depth", [18, 20, 50])
def test_zero_final_gamma_makes_blocks_identities(depth: int) -> None:
    net = ResNet(3, 32, depth=depth, zero_init_final_gamma=True).eval()
    transforms = [m for m in net.modules() if isinstance(m, BasicTransform | BottleneckTransform)]
    finals = {id(m.final_bn) for m in transforms}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [0.0 if id(module) in finals else 1.0]
    second = net.s1.b2
    x = torch.rand(1, second.f.a.in_channels, 5, 5)
    assert torch.equal(second(x), x)


def test_initial_weights_are_he_by_fan_out() -> None:
    net = ResNet(3, 64, depth=50, **RESNEXT)
    for layer in (net.s4.b1.f.a, net.s4.b1.f.b, net.s4.b1.f.c):
        want = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(want, rel=0.02)
        assert layer.bias is None


@pytest.mark.parametrize(("stride_1x1", "a", "b"), [(True, (2, 2), (1, 1)), (False, (1, 1), (2, 2))])
def test_stride_1x1_says_where_a_bottleneck_strides(stride_1x1: bool, a: tuple[int, int], b: tuple[int, int]) -> None:
    net = ResNet(3, 64, depth=50, stride_1x1=stride_1x1).eval()
    assert (net.s2.b1.f.a.stride, net.s2.b1.f.b.stride) == (a, b)
    assert net.s1.b1.f.a.stride == net.s1.b1.f.b.stride == (1, 1)
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 2048)


def test_stems() -> None:
    assert ResNet(3, 32, depth=18).stem.conv.kernel_size == (7, 7)
    assert ResNet(3, 32, depth=20).stem.conv.kernel_size == (3, 3)
    small = ResNet(3, 8, depth=18, stem="cifar").eval()
    assert small.stem(torch.randn(1, 3, 8, 8)).shape == (1, 64, 8, 8)
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 512)


def test_depth_zero_is_chosen_by_the_images() -> None:
    assert ResNet(1, 28).feature_dim == 64
    with torch.device("meta"):
        assert ResNet(3, 224).feature_dim == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, r"depths 10, 18, 34, 50, 101, 152 .* 6 n \+ 2 .* not 21"),
        ({"depth": -4}, "not -4"),
        ({"depth": 2}, "not 2"),
        ({"depth": 50, "trans_fun": "basic_transform"}, "depth 50 is made of bottleneck_transform"),
        ({"depth": 20, "trans_fun": "bottleneck_transform"}, "depth 20 is made of basic_transform"),
        ({"depth": 50, "trans_fun": "bottleneck"}, "not bottleneck"),
        ({"depth": 18, "num_groups": 32}, "num_groups 32 .* need bottleneck_transform"),
        ({"depth": 50, "num_groups": 0}, "num_groups: expected at least 1"),
        ({"depth": 20, "stem": "imagenet"}, "depth 20 is the CIFAR form"),
        ({"depth": 20, "stem": "small"}, "stem is auto, imagenet or cifar, not 'small'"),
        ({"depth": 18, "image_size": 8}, "ImageNet stem needs images of at least 32 x 32, these are 8 x 8; RESNET"),
    ],
)
def test_contradictions_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**{"in_channels": 3, "image_size": 32, **options})
