"""Heads: features [N, D] and labels -> logits [N, K] and a loss. One file a method; ``create_head`` makes one by name."""

from typing import Any

from torch import nn

from pycls.heads.head import Head, Labels
from pycls.heads.output import HeadOutput
from pycls.registry import HEADS

__all__ = ["Head", "HeadOutput", "Labels", "create_head", "list_heads"]


def create_head(name: str, in_features: int, num_classes: int, **options: Any) -> nn.Module:
    """The head of this name, for features [N, in_features] and labels below ``num_classes``.

    Every built-in one is a :class:`Head`; one that you have registered may be any module (``output.py`` says what it returns).

    Raises:
        InputError: (a ``ValueError``) if there is none of this name.
        ValueError: if an option's value cannot work.
        TypeError: for an option it does not have.
    """
    if in_features < 1 or num_classes < 1:
        raise ValueError(f"a head needs at least one feature and one class, not {in_features} and {num_classes}")
    head: nn.Module = HEADS.get(name)(in_features=in_features, num_classes=num_classes, **options)
    return head


def list_heads() -> list[str]:
    """The names that :func:`create_head` takes."""
    return HEADS.names()
