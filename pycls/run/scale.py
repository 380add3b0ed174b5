"""``--mode scale``: from a configuration to that of a larger or smaller net, as a file to train."""

from typing import Any

import yaml
from yacs.config import CfgNode

from pycls import build, config
from pycls.models.complexity import Complexity, complexity
from pycls.models.scaling import Factors, scale_model, scale_side, scaling_factors
from pycls.runtime.files import atomic_write, make_out_dir

SCALED = "scaled.yaml"


def scale(cfg: CfgNode) -> int:
    """Writes OUT_DIR/scaled.yaml, and prints what it changes and what both nets cost. Returns the exit code.

    The net and the images are scaled by MODEL.SCALING_TYPE and MODEL.SCALING_FACTOR; all else stays. A run of the new file
    has its own folder in OUT_DIR.
    """
    with build.user_errors("MODEL.SCALING_TYPE and MODEL.SCALING_FACTOR"):
        factors = scaling_factors(cfg.MODEL.SCALING_TYPE, cfg.MODEL.SCALING_FACTOR)
    channels, size, classes = build.input_of(cfg)
    scaled = _scaled(cfg, factors, size)
    before = _complexity(cfg, channels, size, classes)
    after = _complexity(scaled, channels, scaled.TRAIN.IM_SIZE, classes)
    path = make_out_dir(cfg.OUT_DIR) / SCALED
    atomic_write(path, lambda file: file.write(config.dump(scaled).encode()))
    print("\n".join(line for line in config.difference(cfg, scaled) if not line.endswith("-> (absent)")))
    print(f"\nbefore: {before}\nafter:  {after}\n        {after.flops / before.flops:.2f} times the multiply-adds")
    print(f"in {path}")
    return 0


def _complexity(cfg: CfgNode, channels: int, size: int, classes: int) -> Complexity:
    return complexity(build.build_model(cfg, channels, size, classes, storage=False), channels, size)


def _scaled(cfg: CfgNode, factors: Factors, size: int) -> CfgNode:
    tree: dict[str, Any] = yaml.safe_load(config.dump(cfg))
    options = tree.pop(config.model_section(cfg.MODEL.TYPE), {})
    with build.user_errors("MODEL.TYPE"):
        name, options = scale_model(cfg.MODEL.TYPE, {key.lower(): value for key, value in options.items()}, factors)
    tree[config.model_section(name)] = {key.upper(): value for key, value in options.items()}
    tree["MODEL"] |= {"TYPE": name, "SCALING_TYPE": "", "SCALING_FACTOR": 1.0}
    tree["TRAIN"]["IM_SIZE"] = scale_side(size, factors)
    if cfg.TEST.IM_SIZE:
        tree["TEST"]["IM_SIZE"] = scale_side(cfg.TEST.IM_SIZE, factors)
    tree["OUT_DIR"] = f"{cfg.OUT_DIR}/scaled"
    return CfgNode(tree)
