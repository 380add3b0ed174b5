"""Every family of pycls's against a second statement of its forward pass, on weights under pycls's names.

Logits in evaluation mode, and in training mode the gradient of every parameter.
"""

from functools import partial
from typing import Any

import pytest
import reference_forward as functional
import torch
from reference_forward import Net, randomise
from torch.nn import functional as F

from pycls.models import create_model
from pycls.models.efficientnet import drop_connect
from pycls.models.weight_names import from_ours

ANY = {"stem_w": 8, "depths": (1, 2), "widths": (16, 24), "strides": (1, 2)}
BOTTLENECK = {**ANY, "bot_muls": (0.5, 1.0), "group_ws": (4, 8)}
C_STEM = {"stem_type": "conv", "c_stem_kernels": (3, 3, 1), "c_stem_strides": (2, 2, 1), "c_stem_dims": (4, 8, 16)}
VIT = {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
EN = {"stem_w": 8, "depths": (1, 2), "widths": (8, 12), "exp_ratios": (1, 4), "strides": (1, 2), "kernels": (3, 5),
      "head_w": 20, "se_r": 0.5}  # fmt: skip

any_in, any_cifar = partial(functional.anynet, stem="simple_stem_in"), partial(functional.anynet, stem="res_stem_cifar")
BLOCK, LINEAR = "res_bottleneck_block", "res_bottleneck_linear_block"
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "vanilla": ("anynet", {**ANY, "block_type": "vanilla_block"}, partial(any_in, strides=[1, 2], block="vanilla_block")),
    "basic": ("anynet", {**ANY, "block_type": "res_basic_block", "stem_type": "res_stem_cifar"},
              partial(any_cifar, strides=[1, 2], block="res_basic_block")),
    "bottleneck": ("anynet", {**BOTTLENECK, "stem_type": "res_stem_in"},
                   partial(functional.anynet, stem="res_stem_in", strides=[1, 2], block=BLOCK)),
    "bottleneck, SE, head conv": ("anynet", {**BOTTLENECK, "se_on": True, "head_w": 20},
                                  partial(any_in, strides=[1, 2], block=BLOCK)),
    "linear": ("anynet", {**BOTTLENECK, "block_type": LINEAR, "se_on": True, "activation_fun": "silu"},
               partial(any_in, strides=[1, 2], block=LINEAR)),
    "regnet X": ("regnet", {"depth": 5, "w0": 8, "wa": 6.0, "wm": 2.0, "group_w": 8},
                 partial(any_in, strides=[2] * 4, block=BLOCK)),
    "regnet Y": ("regnet", {"depth": 5, "w0": 8, "wa": 6.0, "wm": 2.0, "group_w": 8, "se_on": True, "bot_mul": 2.0},
                 partial(any_in, strides=[2] * 4, block=BLOCK)),
    "resnet 8": ("resnet", {"depth": 8}, partial(any_cifar, strides=[1, 2, 2], block="res_basic_block")),
    "resnet 50": ("resnet", {"depth": 50, "num_groups": 2, "width_per_group": 4},
                  partial(functional.anynet, stem="res_stem_in", strides=[1, 2, 2, 2], block=BLOCK, stride_1x1=True)),
    "effnet": ("effnet", EN, partial(functional.effnet, strides=[1, 2])),
    "effnet, relu": ("effnet", {**EN, "activation_fun": "relu"}, partial(functional.effnet, strides=[1, 2])),
    "vit": ("vit", VIT, partial(functional.vit, heads=2, strides=[])),
    "vit, conv stem, pooled": ("vit", {**VIT, **C_STEM, "classifier_type": "pooled"},
                               partial(functional.vit, heads=2, strides=[2, 2, 1])),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case: str, training: bool) -> None:
    family, options, forward = CASES[case]
    torch.manual_seed(0)
    model = create_model(family, 5, image_size=32, **options)
    randomise(model)
    model = model.double().train(training)
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 5
    weights = {name: w.clone().requires_grad_(w.is_floating_point() and "running" not in name)
               for name, w in from_ours(model.state_dict(), model, "pycls").items()}  # fmt: skip
    own = {"effnet": F.silu}.get(family, F.relu)
    act = {"silu": F.silu, "relu": F.relu}.get(str(options.get("activation_fun")), own)
    expected = forward(Net(weights, training, act), images)
    logits = model(images).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)
    if training:
        F.cross_entropy(expected, labels).backward()
        F.cross_entropy(logits, labels).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        mine = from_ours({k: gradients.get(k, v) for k, v in model.state_dict().items()}, model, "pycls")
        checked = [name for name, w in weights.items() if w.requires_grad]
        assert len(checked) == len(gradients)
        for name in checked:
            torch.testing.assert_close(mine[name], weights[name].grad, rtol=1e-6, atol=1e-9, msg=name)


def test_drop_connect_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_connect(torch.ones(4000, 2, 3, 3), 0.3)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


def test_dropping_acts_in_training_only() -> None:
    for options in ({"dc_ratio": 0.5}, {"dropout_ratio": 0.5}):
        model = create_model("effnet", 5, image_size=32, **EN, **options)
        images = torch.randn(8, 3, 32, 32)
        model.backbone.train()
        assert not torch.equal(model.features(images), model.features(images))
        model.eval()
        assert torch.equal(model.features(images), model.features(images))
