"""The library without a configuration: backbones and heads by name."""

import sys

import forked
import pytest
import torch
from torch import nn

import pycls
from pycls.models import Classifier, create_model, list_models


class Head(nn.Module):
    def forward(self, features: torch.Tensor, labels: object = None) -> torch.Tensor:
        return features


def test_by_names() -> None:
    model = pycls.create_model(
        "lenet5", num_classes=7, head="cosface", head_options={"scale": 30.0}, feature_dim=12, image_size=8
    )
    assert isinstance(model, Classifier)
    output = model(torch.randn(3, 1, 8, 8), torch.tensor([0, 6, 2]))
    assert output.logits.shape == (3, 7)
    assert output.logits.abs().max() <= 30.0 * 1.36
    output.loss.backward()
    assert model.backbone.feature_dim == 12


@pytest.mark.parametrize("words", ['models.regnetx("200MF", num_classes=3)', "heads.create_head('softmax', 4, 3)"])
def test_the_first_word_after_the_import_may_be_a_room(words: str) -> None:
    assert forked.run([sys.executable, "-c", f"import pycls; pycls.{words}"]).returncode == 0


def test_the_backbones_own_images_are_the_default() -> None:
    assert create_model("lenet5", 10)(torch.randn(2, 1, 28, 28)).logits.shape == (2, 10)
    assert create_model("resnet", 10, depth=18).backbone.stem.conv.kernel_size == (7, 7)


def test_a_head_that_is_built_already() -> None:
    head = Head()
    assert create_model("lenetspp", 10, head).head is head
    with pytest.raises(ValueError, match="this head is built already"):
        create_model("lenetspp", 10, head, {"scale": 3.0})


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no model named 'resent'; did you mean 'resnet'"):
        create_model("resent", 10)
    with pytest.raises(ValueError, match=r"no head named 'softmx'; did you mean .*'softmax'"):
        create_model("lenet5", 10, "softmx")
    with pytest.raises(TypeError, match=r"lenet5 has no option 'widht'; it has: .*conv1_width"):
        create_model("lenet5", 10, widht=3)
    for classes in (0, None):
        with pytest.raises(ValueError, match=f"needs num_classes, at least one, not {classes}"):
            create_model("lenet5", classes)
    with pytest.raises(ValueError, match="the Model Zoo has no weights 'lenet5'"):
        create_model("lenet5", 10, pretrained=True)


def test_list_models_imports_no_backbone_and_knows_all() -> None:
    assert {"lenet5", "lenetspp", "lsoftmax_mnist", "lsoftmax_fig2", "resnet", "wrn"} <= set(list_models())
    assert pycls.list_models() == list_models()
