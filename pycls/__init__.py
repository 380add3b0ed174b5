"""pycls: image classification for people who care about the head.

``create_head``, ``create_model``, ``list_heads`` and ``list_models`` are the library without any configuration; ``models``
has pycls's own names too, as in ``pycls.models.regnetx("400MF")``. All are imported when first used: ``import pycls`` itself
costs no import of torch, which keeps the command line's answers quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycls import heads as heads
    from pycls import models as models
    from pycls.heads import create_head, list_heads
    from pycls.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["create_head", "create_model", "heads", "list_heads", "list_models", "models"]

_HOMES = {
    "create_head": "pycls.heads",
    "list_heads": "pycls.heads",
    "create_model": "pycls.models",
    "list_models": "pycls.models",
}


def __getattr__(name: str) -> Any:
    if name in ("heads", "models"):
        return importlib.import_module(f"pycls.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pycls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
