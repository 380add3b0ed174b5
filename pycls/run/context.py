"""What every step of a run needs to know."""

from dataclasses import dataclass, replace

import torch
from yacs.config import CfgNode

from pycls import build, config
from pycls.runtime.distributed import Ranks


@dataclass(frozen=True)
class RunContext:
    """A run, or a stage of one, in this process.

    Attributes:
        cfg: the tree of the stage.
        dataset: the training set.
        classes: K.
        device: of this process.
        ranks: who this process is among how many.
    """

    cfg: CfgNode
    dataset: build.Dataset
    classes: int
    device: torch.device
    ranks: Ranks

    def last_stage(self) -> "RunContext":
        """The same with the tree of the run's last stage."""
        return replace(self, cfg=config.last_stage(self.cfg))

    @property
    def title(self) -> str:
        """Backbone and head, for people."""
        return title(self.cfg)


def title(cfg: CfgNode) -> str:
    """Backbone and head, for people."""
    return f"{cfg.MODEL.TYPE}{cfg.MODEL.DEPTH or ''} with {cfg.HEAD.NAME or cfg.HEAD.SIMILARITY.NAME} head"
