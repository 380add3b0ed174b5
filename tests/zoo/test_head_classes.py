"""A head's weights go to the classes of their names: every tensor of every head, whatever its rows."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.state_file import load_weights, save_weights
from pycls.errors import InputError
from pycls.heads.class_rows import class_tensors
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.parts import Auxiliary
from pycls.models import create_model
from pycls.models.classifier import Classifier
from pycls.models.pretrained import load_into
from pycls.registry import CRITERIA, HEADS
from pycls.run.convert import main as convert
from pycls.zoo.weights import Weights

OLD, SHARED = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"], ["gnu", "new", "bee", "old"]
COUNTS = {"class_counts": torch.tensor([900, 9, 1, 70, 30, 3, 5])}
DIM = 6


def classifier(name: str, classes: int = 7, seed: int = 0, **options: Any) -> Classifier:
    """Its backbone passes features on; every weight of its head is as after training, and so different from all others."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"in_features": DIM, "num_classes": classes}
    if name in ("ldam", "logit_adjustment", "balanced_softmax"):
        given["class_counts"] = COUNTS["class_counts"][:classes].flip(0) if seed else COUNTS["class_counts"][:classes]
    head = HEADS.get(name)(**given, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.rand_like(parameter))
        for auxiliary in head.auxiliaries:
            for buffer in (buffer for buffer in auxiliary.buffers() if buffer.is_floating_point()):
                buffer.copy_(torch.rand_like(buffer))
    backbone = nn.Sequential(nn.Linear(DIM, DIM, bias=False))
    return Classifier(backbone, head).eval()


def weights(model: Classifier, names: Any = tuple(OLD), data: str = "") -> Weights:
    about = {} if names is None else {"class_names": list(names) if isinstance(names, tuple) else names}
    return Weights({name: value.clone() for name, value in model.state_dict().items()}, "w", "RGB", data, about=about)


OPTIONS = [(name, {}) for name in HEADS.names()] + [
    ("center", {"update": "gradient"}), ("lgm", {"covariance": "diagonal"}), ("ldam", {"drw_epoch": 3})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_same_classes_in_another_order(name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    old, new = classifier(name, **options), classifier(name, seed=1, **options)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    own = {key: value.clone() for key, value in new.state_dict().items()}
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(new, weights(old), new_head=True, class_names=[OLD[k] for k in order])
    assert "w: head weights kept: the same 7 classes in another order" in caplog.text
    tensors = class_tensors(new.head)
    assert tensors is not None and not tensors.undeclared and new.class_names == [OLD[k] for k in order]
    before, after = old.head.state_dict(), new.head.state_dict()
    for key, value in after.items():
        rows = tensors.learned.get(key)
        if key in tensors.priors:
            assert torch.equal(value, own[f"head.{key}"]), "of the new training set"
        elif rows:
            assert torch.equal(value.view(7, rows, -1), before[key].view(7, rows, -1)[order]), key
        else:
            assert torch.equal(value, before[key]), key
    features = torch.randn(5, DIM)
    with torch.inference_mode():
        torch.testing.assert_close(new(features).logits, old(features).logits[:, order])


def test_every_tensor_of_seven_rows_is_declared() -> None:
    """In heads of seven classes (and three centres each) and six dimensions: what has 7 or 21 rows is of the classes."""
    for name, options in OPTIONS:
        head = classifier(name, **options).head
        tensors = class_tensors(head)
        assert tensors is not None
        declared = tensors.learned.keys() | tensors.priors
        assert declared == {key for key, value in head.state_dict().items() if value.ndim and len(value) % 7 == 0}, name
    for name in ("class_balanced", "logit_adjustment"):
        assert CRITERIA.get(name)(**COUNTS).class_priors()
    assert CRITERIA.get("cross_entropy")(class_weights=[1.0] * 7).class_priors() == ["weights"]


@pytest.mark.parametrize("name", ["softmax", "subcenter_arcface", "lws", "center", "ldam"])
def test_some_classes_are_known(name: str, caplog: pytest.LogCaptureFixture) -> None:
    old, new = classifier(name), classifier(name, 4, seed=1)
    own = {key: value.clone() for key, value in new.head.state_dict().items()}
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(new, weights(old), new_head=True, class_names=SHARED)
    assert "kept: 2 of its 7 classes by their names; 2 of the 4 now are new, with new weights: new, old" in caplog.text
    tensors = class_tensors(new.head)
    assert tensors is not None
    for key, rows in tensors.learned.items():
        states = (old.head.state_dict(), new.head.state_dict(), own)
        before, after, fresh = (state[key].unflatten(0, (-1, rows)) for state in states)
        assert torch.equal(after[[0, 2]], before[[6, 1]]) and torch.equal(after[[1, 3]], fresh[[1, 3]]), key


@pytest.mark.parametrize(
    ("theirs", "trained_on", "ours", "data", "kept", "said"),
    [
        (tuple(OLD), "", ["a", "b", "c", "d", "e", "f", "g"], "", False, "none of its 7 classes (ant, bee, cat, ...) is among"),
        (tuple(OLD), "", [*"ABCDEF", "Gnu"], "", False, "('Gnu' and 'gnu' differ only in how they are written)"),
        (tuple(OLD), "", OLD, "", True, "the same 7 classes"),
        (tuple(OLD), "", None, "", True, "the model's are not named, and class k is taken to be class k"),
        (None, "", OLD, "", True, "these weights' are not named, and class k is taken to be class k"),
        (None, "", None, "", True, "both are not named"),
        (None, "cifar10", OLD, "image_folder", False, "its classes are those of cifar10, and image_folder has others (ant"),
        (None, "ImageNet-1k", OLD, "imagenet_lt", False, "its classes are those of ImageNet-1k, and imagenet_lt has others"),
        (None, "ImageNet-1k", [f"n0000000{k} x" for k in range(7)], "image_folder", True, "the same 7 classes; they have no"),
        (None, "cifar10", OLD, "cifar10", True, "these weights' are not named"),
        (tuple("0123456"), "", list("0123456"), "", True, "the names are numbers only, and a number is taken to be"),
        (tuple("0123456"), "image_list", list("0123456"), "image_list", True, "the names are numbers only, and a number is"),
        (tuple("0123456"), "", OLD, "", False, "none of its 7 classes (0, 1, 2, ...)"),
        (("ant", "ant", *"bcdef"), "", ["ant", *"BCDEFG"], "", False, "none of its 7 classes"),
    ],
)
def test_what_becomes_of_the_head_is_said(
    theirs: Any, trained_on: str, ours: Any, data: str, kept: bool, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = classifier("softmax"), classifier("softmax", seed=1)
    expected = (old if kept else new).head.weight.detach().clone()
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(new, weights(old, theirs, trained_on), new_head=True, class_names=ours, data=data)
    assert said in caplog.text and torch.equal(new.head.weight, expected)
    assert torch.equal(new.backbone[0].weight, old.backbone[0].weight)


def test_imagenets_usual_order(caplog: pytest.LogCaptureFixture) -> None:
    """Weights without names are in the order of the WordNet ids; the classes here need not be."""
    old, new = classifier("softmax"), classifier("softmax", seed=1)
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(new, weights(old, None, "imagenet"), True, [f"n0000000{k} x" for k in range(6, -1, -1)], "imagenet")
    assert "the same 7 classes in another order" in caplog.text and "taken to be in ImageNet's usual order" in caplog.text
    assert torch.equal(new.head.weight, old.head.weight.flip(0))


@pytest.mark.parametrize(
    ("names", "words"),
    [("ant", "no list of names"), ([1, 2], "no list of names"), ({"a": 1}, "no list of names"), ([None], "no list of names"),
     ([*OLD, "hen"], "are 8, and it has 7 classes")],
)  # fmt: skip
def test_names_that_are_none(names: Any, words: str) -> None:
    for new_head in (True, False):
        with pytest.raises(InputError, match=f"w: its class_names {words}|w: its class_names are {words}"):
            load_into(classifier("softmax"), weights(classifier("softmax"), names), new_head, class_names=OLD)


class Undeclared(Auxiliary):
    """Has rows for classes and does not say so."""

    term = "undeclared"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(7, 2))

    def forward(self, features: Tensor, labels: Tensor, logit: Tensor, weights: Tensor) -> Tensor:
        return features.sum() * 0


def test_a_part_that_does_not_declare_its_rows(caplog: pytest.LogCaptureFixture) -> None:
    """Where rows would have to move, the head is a new one; where they stay, it is kept."""
    models = []
    for _ in range(3):
        head = Head(Linear(DIM, 7), None, CRITERIA.get("cross_entropy")(), [Undeclared()])
        models.append(Classifier(nn.Sequential(nn.Linear(DIM, DIM)), head))
    old, moved, same = models
    own = moved.head.weight.detach().clone()
    with caplog.at_level(logging.INFO, "pycls"):
        load_into(moved, weights(old), new_head=True, class_names=OLD[::-1])
        load_into(same, weights(old), new_head=True, class_names=OLD)
    assert "its part does not declare the rows of auxiliaries.0.table (class_rows)" in caplog.text
    assert torch.equal(moved.head.weight, own) and torch.equal(same.head.weight, old.head.weight)
    assert torch.equal(same.head.auxiliaries[0].table, old.head.auxiliaries[0].table)


def test_names_are_kept_by_models_and_files(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"depth": 20, "image_size": 8}
    model = create_model("resnet", class_names=OLD, **arguments)
    assert model.class_names == OLD and model.head.similarity.num_classes == 7
    nn.init.normal_(model.head.weight)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), {"class_names": OLD})
    order = OLD[::-1]
    assert create_model("resnet", 7, pretrained=str(tmp_path / "w.safetensors"), **arguments).class_names == OLD
    turned = create_model("resnet", class_names=order, pretrained=str(tmp_path / "w.safetensors"), **arguments)
    assert torch.equal(turned.head.weight, model.head.weight.flip(0)) and turned.class_names == order
    net = ["MODEL.TYPE", "resnet", "MODEL.DEPTH", "20", "TRAIN.IM_SIZE", "8"]
    for source, to, name in (("w.safetensors", "pycls", "a.pyth"), ("a.pyth", "ours", "b.safetensors")):
        colours = ["--to-colours", "RGB", "--from-colours", "RGB"]
        assert convert(["--to", to, *colours, str(tmp_path / source), str(tmp_path / name), *net]) == 0
        assert load_weights(tmp_path / name)[1]["class_names"] == OLD
    with pytest.raises(ValueError, match=r"num_classes.* is 3, and there are 7 class_names"):
        create_model("resnet", 3, class_names=OLD, **arguments)
    with pytest.raises(ValueError, match=r"that of the head, is 7, and there are 2 class_names"):
        create_model("resnet", head=model.head, class_names=OLD[:2], **arguments)
    with pytest.raises(ValueError, match="class_names is a list of names"):
        create_model("resnet", class_names="ant", **arguments)
