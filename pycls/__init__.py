"""pycls: image classification for people who care about the head.

``create_head``, ``create_model``, ``list_heads`` and ``list_models`` are the library without any configuration. They are
imported when first used: ``import pycls`` itself costs no import of torch, which keeps the command line's answers quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycls.heads import create_head, list_heads
    from pycls.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["create_head", "create_model", "list_heads", "list_models"]

_HOMES = {
    "create_head": "pycls.heads",
    "list_heads": "pycls.heads",
    "create_model": "pycls.models",
    "list_models": "pycls.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pycls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
