"""Numbers that are no numbers: found before they reach a checkpoint, and reported with what led to them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pycls.runtime.distributed import agree, gather_objects

MAX_IDS_SHOWN = 256


@dataclass
class BadStep:
    """The first step whose loss is not finite in some process.

    Attributes:
        index: of the step among those looked at, from 0.
        value: the loss.
        ids: of the samples of the global batch.
    """

    index: int
    value: float
    ids: list[int]

    def samples(self) -> str:
        """The ids for a message, cut short where they are very many."""
        shown = " ".join(map(str, self.ids[:MAX_IDS_SHOWN]))
        return f"{shown} ... ({len(self.ids)} in all)" if len(self.ids) > MAX_IDS_SHOWN else shown


def first_bad_step(losses: list[float], ids: list[Tensor], parts: int) -> BadStep | None:
    """The first step that went wrong in any process, the same in all of them; None if none did. All call it.

    Args:
        losses: this process's, ``parts`` a step.
        ids: of this process's samples, int64 [n], one tensor a step.
        parts: losses of a step.
    """
    if not agree(not all(map(math.isfinite, losses))):
        return None
    steps = [losses[k : k + parts] for k in range(0, len(losses), parts)]
    by_rank = gather_objects((steps, ids))
    bad = [[x for of_rank, _ in by_rank for x in of_rank[k] if not math.isfinite(x)] for k in range(len(steps))]
    index = next(k for k, values in enumerate(bad) if values)
    return BadStep(index, bad[index][0], torch.cat([of_rank[index] for _, of_rank in by_rank]).tolist())
