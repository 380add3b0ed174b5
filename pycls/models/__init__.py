"""Backbones: images [N, C, H, W] -> features [N, D]. One file a family; ``create_model`` makes one, with its head."""

import inspect
from typing import Any

from torch import nn

from pycls.models.classifier import Classifier
from pycls.registry import HEADS, MODELS

__all__ = ["Classifier", "create_model", "list_models"]


def create_model(
    name: str,
    num_classes: int,
    head: str | nn.Module = "softmax",
    head_options: dict[str, Any] | None = None,
    **options: Any,
) -> Classifier:
    """The backbone of this name with a head on it.

    ``create_model("resnet", num_classes=100, head="cosface", head_options={"scale": 30.0}, depth=20, image_size=32)``

    Args:
        name: the backbone, one of :func:`list_models`.
        num_classes: number of classes K.
        head: a head's name, which is built for this backbone with ``head_options``, or a head that was built for its
            features already.
        head_options: keyword arguments of a head given by name.
        **options: the backbone's keyword arguments, ``in_channels`` and ``image_size`` (in pixels) among them; each
            backbone has those of the images it was made for as defaults.

    Raises:
        InputError: (a ``ValueError``) if there is no such backbone or head.
        ValueError: if an option's value cannot work.
        TypeError: for an option that the backbone or the head does not have.
    """
    if num_classes < 1:
        raise ValueError(f"a classifier needs at least one class, not {num_classes}")
    component = MODELS.get(name)
    known = inspect.signature(component).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(known)}")
    if not isinstance(head, str) and head_options:
        raise ValueError("head_options go with a head's name, and this head is built already")
    build_head = HEADS.get(head) if isinstance(head, str) else None
    backbone = component(**options)
    if build_head is not None:
        head = build_head(in_features=backbone.feature_dim, num_classes=num_classes, **(head_options or {}))
    assert isinstance(head, nn.Module)
    return Classifier(backbone, head)


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return MODELS.names()
