"""torchvision's models, loaded into ours by name: equal logits; and every mistake in a state dict is named."""

from typing import Any

import pytest
import torch
from reference_forward import randomise
from torch import Tensor, nn

from pycls.errors import InputError
from pycls.models import Classifier, create_model
from pycls.models.weight_names import NameFormat, from_ours, names, to_ours

RESNET = {"stride_1x1": False}


def regnet_as_anynet(widths: tuple[int, ...], depths: tuple[int, ...], group_w: int, se_on: bool) -> tuple[str, dict[str, Any]]:
    """torchvision rounds a half up where pycls rounds to even, so that three of its RegNets have other widths."""
    return "anynet", {"depths": depths, "widths": widths, "strides": (2,) * 4, "bot_muls": (1.0,) * 4,
                      "group_ws": (group_w,) * 4, "se_on": se_on}  # fmt: skip


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet", {"depth": 18}),
    "resnet50": ("resnet", {"depth": 50, **RESNET}),
    "resnext50_32x4d": ("ResNeXt-50", {}),
    "regnet_x_400mf": regnet_as_anynet((32, 64, 160, 400), (1, 2, 7, 12), 16, False),
    "regnet_y_400mf": ("RegNetY-400MF", {}),
    "densenet121": ("densenet", {"depth": 121}),
    "efficientnet_b0": ("EfficientNet-B0", {}),
    "vit_b_16": ("vit", {"ln_eps": 1e-6}),
}
"""torchvision's name -> ours, with its options."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet34": ("resnet", {"depth": 34}),
    "resnet101": ("ResNet-101", {}),
    "resnet152": ("resnet", {"depth": 152, **RESNET}),
    "resnext101_32x8d": ("resnet", {"depth": 101, "num_groups": 32, "width_per_group": 8, **RESNET}),
    "wide_resnet50_2": ("resnet", {"depth": 50, "width_per_group": 128, **RESNET}),
    "densenet161": ("densenet", {"depth": 161}),
    "densenet169": ("densenet", {"depth": 169}),
    "densenet201": ("densenet", {"depth": 201}),
    "regnet_x_800mf": ("RegNetX-800MF", {}),
    "regnet_x_8gf": ("RegNetX-8.0GF", {}),
    "regnet_y_800mf": regnet_as_anynet((64, 144, 320, 784), (1, 3, 8, 2), 16, True),
    "regnet_y_8gf": regnet_as_anynet((224, 448, 896, 2016), (2, 4, 10, 1), 56, True),
    **{f"regnet_{xy}_{theirs}": (f"RegNet{xy.upper()}-{ours}", {})
       for xy in "xy" for theirs, ours in (("1_6gf", "1.6GF"), ("3_2gf", "3.2GF"), ("16gf", "16GF"), ("32gf", "32GF"))},
    **{f"efficientnet_b{n}": (f"EfficientNet-B{n}", {}) for n in range(1, 6)},
    "vit_b_32": ("vit", {"patch_size": 32}),
    "vit_l_16": ("vit", {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024, "mlp_dim": 4096}),
}  # fmt: skip
"""The others that both have: their names and shapes are compared, which takes no arithmetic."""


def theirs(name: str, image_size: int = 224) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is the independent implementation")
    return models.get_model(name, weights=None, **({"image_size": image_size} if name.startswith("vit") else {}))


@pytest.mark.parametrize("name", OURS)
def test_torchvisions_weights_give_torchvisions_logits(name: str) -> None:
    side = 64
    reference = theirs(name, side)
    randomise(reference)
    family, options = OURS[name]
    model = create_model(family, 1000, image_size=side, **options)
    given = reference.state_dict()
    model.load_state_dict(to_ours(given, model, "torchvision"))
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = reference.eval()(images)
        logits = model.eval()(images).logits
    assert expected.std() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    back = from_ours(model.state_dict(), model, "torchvision")
    assert back.keys() == given.keys()
    assert all(torch.equal(back[key], given[key]) for key in given)


@pytest.mark.parametrize("name", OTHERS)
def test_names_and_shapes_are_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "zeros_", "ones_"):
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)  # their RegNets cannot be built on meta
    family, options = OTHERS[name]
    reference = theirs(name)
    with torch.device("meta"):
        model = create_model(family, 1000, **options)
    mapping, own = names(model, "torchvision"), model.state_dict()
    assert {mapping[key]: own[key].shape for key in mapping} == {k: v.shape for k, v in reference.state_dict().items()}


def small(**options: Any) -> Classifier:
    torch.manual_seed(0)
    stages = {"stem_w": 8, "depths": (1, 1), "widths": (8, 16), "strides": (1, 2), "bot_muls": (1, 1), "group_ws": (4, 4)}
    return create_model("anynet", 5, image_size=32, **{**stages, **options})


@pytest.mark.parametrize("form", ["ours", "pycls", "torchvision"])
def test_round_trip(form: NameFormat) -> None:
    model = small(se_on=True)
    weights = model.state_dict()
    there = from_ours(weights, model, form)
    assert ("head.steps" in there) == (form == "ours")
    back = to_ours(there, model, form)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_pyclss_names() -> None:
    keys = set(from_ours(small(se_on=True, head_w=24).state_dict(), small(se_on=True, head_w=24), "pycls"))
    assert {"stem.conv.weight", "stem.bn.running_var", "s2.b1.proj.weight", "s1.b1.f.a.weight", "s1.b1.f.a_bn.bias",
            "s2.b1.f.se.f_ex.0.weight", "s2.b1.f.se.f_ex.2.bias", "head.conv.weight", "head.bn.num_batches_tracked",
            "head.fc.weight", "head.fc.bias"} <= keys  # fmt: skip
    assert not any(key.startswith(("backbone", "head.similarity", "head.steps")) for key in keys)


def test_names_in_the_model_zoo_of_pycls() -> None:
    with torch.device("meta"):
        net, vit = create_model("EfficientNet-B0", 1000), create_model("vit", 1000)
    assert {"head.conv.weight", "head.conv_bn.weight", "head.fc.weight", "s1.b1.dwise.weight", "s2.b1.exp_bn.running_mean",
            "s1.b1.se.f_ex.2.weight", "s7.b1.lin_proj_bn.bias"} <= set(names(net, "pycls").values())  # fmt: skip
    assert {"head.head_fc.bias", "class_token", "pos_embedding", "stem.patchify.weight", "encoder.ln.weight",
            "encoder.block_11.self_attention.block.in_proj_bias", "encoder.block_0.mlp_block.linear_2.weight",
            "encoder.block_3.self_attention.block.out_proj.weight"} <= set(names(vit, "pycls").values())  # fmt: skip


def test_versions_of_pyclss_vit() -> None:
    """Its main branch has PyTorch's attention and positions [L, 1, D]; branches have linear layers and [1, L, D]."""
    torch.manual_seed(0)
    model = create_model("vit", 5, image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    nn.init.normal_(model.backbone.get_parameter("pos_embedding"))
    today = from_ours(model.state_dict(), model, "pycls")
    attention = nn.MultiheadAttention(8, 2).state_dict()
    inner = {key.partition("self_attention.block.")[2]: value for key, value in today.items() if "self_attention" in key}
    assert {key: value.shape for key, value in inner.items()} == {key: value.shape for key, value in attention.items()}
    assert today["pos_embedding"].shape == (5, 1, 8) and today["pos_embedding"].is_contiguous()
    other: dict[str, Tensor] = {}
    for key, value in today.items():
        key = key.replace("block.in_proj_", "attn_proj.").replace("self_attention.block.out_proj", "self_attention.out_proj")
        other[key] = value.transpose(0, 1) if key == "pos_embedding" else value
    assert {"encoder.block_0.self_attention.attn_proj.weight", "encoder.block_0.self_attention.out_proj.bias"} <= {*other}
    for given in (today, other, today | {"pos_embedding": other["pos_embedding"]}):
        back = to_ours(given, model, "pycls")
        assert back.keys() == model.state_dict().keys()
        assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def rbf_repository(model: Classifier) -> dict[str, Tensor]:
    """As the RBF-Softmax repository writes it: another squeeze-and-excitation, and a bias of whatever memory held."""
    state = {}
    for key, value in from_ours(model.state_dict(), model, "pycls").items():
        if ".se." in key:
            key = key.replace("f_ex.0", "conv1").replace("f_ex.2", "f_ex.0")
        state[key] = value
    return state | {"head.fc.bias": torch.full((5,), float("nan"))}


def test_files_of_the_rbf_softmax_repository(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = create_model("effnet", 5, "rbf_softmax", image_size=32, stem_w=8, depths=(1, 1), widths=(8, 16), exp_ratios=(1, 6),
                         se_r=0.25, strides=(1, 2), kernels=(3, 5), head_w=24)  # fmt: skip
    state = rbf_repository(model)
    assert "s1.b1.se.f_ex.2.bias" not in state
    assert {"s1.b1.se.conv1.weight", "s2.b1.se.f_ex.0.bias", "head.fc.weight"} <= {*state}
    with caplog.at_level("INFO", "pycls"):
        back = to_ours(state, model, "pycls")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    assert "head.fc.bias is dropped: RBF-Softmax has no bias" in caplog.text
    assert from_ours(back, model, "pycls")["head.fc.bias"].tolist() == [0] * 5


def test_mistakes_are_named() -> None:
    model = small()
    weights = from_ours(model.state_dict(), model, "pycls")
    with pytest.raises(InputError, match=r"not in pycls's names: missing s1\.b1\.f\.a\.weight; unknown s1\.b1\.f\.x$"):
        to_ours({("s1.b1.f.x" if k == "s1.b1.f.a.weight" else k): v for k, v in weights.items()}, model, "pycls")
    with pytest.raises(InputError, match=r"missing head\.fc\.bias, head\.fc\.weight, s1\.b1\.f\.a\.weight and \d+ more; unk"):
        to_ours({"module": torch.zeros(1)}, model, "pycls")
    with pytest.raises(InputError, match=r"head\.similarity\.weight is \[7, 16\] and should be \[5, 16\]"):
        to_ours({**weights, "head.fc.weight": torch.zeros(7, 16)}, model, "pycls")
    with pytest.raises(InputError, match="not in our names: missing backbone"):
        from_ours(weights, model, "pycls")


@pytest.mark.parametrize(
    ("make", "form", "message"),
    [
        (lambda: create_model("lenet5", 5), "pycls", "pycls has no model such as this LeNet5"),
        (lambda: create_model("wrn", 5, depth=10), "torchvision", "torchvision has no model such as this WideResNet"),
        (lambda: create_model("densenet", 5), "pycls", "pycls has no model such as this DenseNet"),
        (lambda: create_model("resnet", 5, depth=50), "torchvision", "stride on the 3 x 3: .* RESNET.STRIDE_1X1 False"),
        (lambda: create_model("resnet", 5, head="cosface", depth=20), "pycls", "head only; .* has head.similarity.weight"),
    ],
)
def test_models_that_others_do_not_have(make: Any, form: NameFormat, message: str) -> None:
    with torch.device("meta"):
        model = make()
    with pytest.raises(InputError, match=message):
        names(model, form)
