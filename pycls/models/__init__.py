"""Backbones: images [N, C, H, W] -> features [N, D]. One file a family; ``create_model`` makes one, with its head."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from pycls.errors import InputError
from pycls.models.classifier import Classifier
from pycls.models.zoo_names import ARCHITECTURES
from pycls.registry import HEADS, MODELS, suggestions

IMAGENET_CLASSES = 1000

__all__ = ["Classifier", "create_model", "effnet", "list_models", "named_model", "regnetx", "regnety", "resnet", "resnext"]


def create_model(
    name: str,
    /,
    num_classes: int | None = None,
    head: str | nn.Module = "softmax",
    head_options: dict[str, Any] | None = None,
    pretrained: bool | str = False,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Classifier:
    """The backbone of this name with a head on it.

    ``create_model("resnet", num_classes=100, head="cosface", head_options={"scale": 30.0}, depth=20, image_size=32)``
    ``create_model("RegNetX-400MF", num_classes=100, head="arcface")``
    ``create_model("RegNetX-400MF", pretrained=True)``

    Args:
        name: the backbone, one of :func:`list_models`: a family, or an architecture, whose options are set already.
        num_classes: number of classes K; None for the 1,000 of ImageNet, for an architecture.
        head: a head's name, built for this backbone with ``head_options``, or a head built for its features already.
        head_options: keyword arguments of a head given by name.
        pretrained: with weights: True for the Model Zoo's of this architecture (timm's or torchvision's own for those two),
            or the name, URL or file of some. A head of another kind, or for other classes, is re-initialised, and only
            the backbone's are taken.
        class_names: names of the K classes; the model keeps them, and takes each class's weights from ``pretrained`` by them.
        **options: the backbone's keyword arguments, such as ``in_channels`` and ``image_size`` (in pixels).

    Raises:
        InputError: (a ``ValueError``) if there is no such backbone, head or weights, or they are another model's.
        RunError: if weights cannot be fetched.
        ValueError: if an option's value cannot work.
        TypeError: for an option that the backbone or the head does not have.
    """
    if pretrained is True and name in MODELS and "pretrained" in inspect.signature(MODELS.get(name)).parameters:
        options["pretrained"], pretrained = True, False
    weights = _weights(name, pretrained)
    if weights is not None and weights.entry is not None:
        options = {"image_size": weights.entry.crop, **weights.entry.options, **options}
    if class_names is not None:
        num_classes = _number_of(class_names, num_classes)
    name, num_classes, options = _architecture(name, num_classes, options)
    if num_classes is None or num_classes < 1:
        raise ValueError(f"a classifier needs num_classes, at least one, not {num_classes}")
    if not isinstance(head, str) and head_options:
        raise ValueError("head_options go with a head's name, and this head is built already")
    build_head = HEADS.get(head) if isinstance(head, str) else None
    backbone = _backbone(name, options)
    if build_head is not None:
        head = build_head(in_features=backbone.feature_dim, num_classes=num_classes, **(head_options or {}))
    assert isinstance(head, nn.Module)
    if class_names is not None:
        _number_of(class_names, getattr(getattr(head, "similarity", None), "num_classes", None))
    model = Classifier(backbone, head)
    if weights is not None:
        from pycls.models.pretrained import load_into

        load_into(model, weights, new_head=True, class_names=class_names)
    elif class_names is not None:
        model.class_names = list(class_names)
    return model


def _backbone(name: str, options: dict[str, Any]) -> Any:
    component = MODELS.get(name)
    known = inspect.signature(component).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(known)}")
    return component(**options)


def _architecture(
    name: str, num_classes: int | None, options: dict[str, Any]
) -> tuple[str, int | None, dict[str, Any]]:
    """The backbone of an architecture's name, with its options and the classes of ImageNet unless others are given."""
    if name in MODELS:
        return name, num_classes, options
    if name not in ARCHITECTURES:
        raise InputError(f"there is no model named {name!r}{suggestions(name, list_models())}")
    known = ARCHITECTURES[name]
    options = {"image_size": known.image_size, **known.options, **options}
    return known.backbone, IMAGENET_CLASSES if num_classes is None else num_classes, options


def _number_of(class_names: Sequence[str], num_classes: int | None) -> int:
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise ValueError("class_names is a list of names")
    if num_classes not in (None, len(class_names)):
        raise ValueError(f"num_classes, or that of the head, is {num_classes}, and there are {len(class_names)} class_names")
    return len(class_names)


def _weights(name: str, pretrained: bool | str) -> Any:
    """The weights that are asked for, read before anything is built; None for none."""
    if pretrained is False:
        return None
    from pycls import zoo

    return zoo.load(zoo.find(name).url if pretrained is True else pretrained)


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return [*MODELS.names(), *ARCHITECTURES]


def named_model(name: str, pretrained: bool | str = False, num_classes: int = IMAGENET_CLASSES, **options: Any) -> Classifier:
    """An architecture by name: :func:`create_model`, in pycls's order of arguments.

    Raises:
        InputError: if there is no such architecture.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"there is no architecture named {name!r}{suggestions(name, ARCHITECTURES)}")
    return create_model(name, num_classes, pretrained=pretrained, **options)


def regnetx(name: str, pretrained: bool | str = False, **options: Any) -> Classifier:
    """``regnetx("400MF")``: :func:`named_model` of RegNetX-400MF."""
    return named_model(_with_family("RegNetX", name), pretrained, **options)


def regnety(name: str, pretrained: bool | str = False, **options: Any) -> Classifier:
    """``regnety("400MF")``: :func:`named_model` of RegNetY-400MF."""
    return named_model(_with_family("RegNetY", name), pretrained, **options)


def resnet(name: str | int, pretrained: bool | str = False, **options: Any) -> Classifier:
    """``resnet(50)``: :func:`named_model` of ResNet-50."""
    return named_model(_with_family("ResNet", name), pretrained, **options)


def resnext(name: str | int, pretrained: bool | str = False, **options: Any) -> Classifier:
    """``resnext(50)``: :func:`named_model` of ResNeXt-50 (32 groups of 4)."""
    return named_model(_with_family("ResNeXt", name), pretrained, **options)


def effnet(name: str, pretrained: bool | str = False, **options: Any) -> Classifier:
    """``effnet("B0")``: :func:`named_model` of EfficientNet-B0."""
    return named_model(_with_family("EfficientNet", name), pretrained, **options)


def _with_family(family: str, name: str | int) -> str:
    """``400MF`` and ``RegNetX-400MF`` -> ``RegNetX-400MF``."""
    return str(name) if str(name).startswith(f"{family}-") else f"{family}-{name}"
