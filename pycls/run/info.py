"""``--mode info``: the options, the model, and what it costs."""

import logging

from yacs.config import CfgNode

from pycls import build, config
from pycls.heads.head import Head
from pycls.models.complexity import complexity

logger = logging.getLogger(__name__)

def info(cfg: CfgNode) -> int:
    """Prints the options, the model, and its parameters, multiply-adds and activations. Returns the exit code."""
    channels, size, classes = build.input_of(cfg)
    model = build.build_model(cfg, channels, size, classes, storage=False)
    print(config.dump(cfg))
    print(model)
    print(f"\nimages {channels} x {size} x {size}, features {model.backbone.feature_dim}, classes {classes}")
    if isinstance(model.head, Head):
        backend, reason = model.head.backend
        print(f"head computed by the {backend.name} backend here: {reason}")
    print(complexity(model, channels, size))
    return 0
