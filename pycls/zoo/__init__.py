"""The Model Zoo: published weights, where they are, and what they want of an image.

``entries`` and ``find`` look things up, ``fetch`` brings a file into the cache, ``load`` reads weights by name, URL or file
name; ``pycls.models.pretrained`` gives them to a model.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pycls.zoo.catalogue import Entry, entries, find

if TYPE_CHECKING:
    from pycls.zoo.store import fetch, pins
    from pycls.zoo.weights import Weights, load

__all__ = ["Entry", "Weights", "entries", "fetch", "find", "load", "pins"]

_NEED_TORCH = {"fetch": "store", "pins": "store", "Weights": "weights", "load": "weights"}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module 'pycls.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pycls.zoo.{_NEED_TORCH[name]}"), name)
