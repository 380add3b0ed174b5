"""A net whose steps take as long as a test needs, and whose process fails when and how a test asks for it.

Imported by the runs through ``IMPORTS``. A file ``<fault>-<rank>`` in the folder $FAULTS asks rank <rank> for a fault.
"""

import os
import time
from pathlib import Path

from torch import Tensor

from pycls.models.lenet import LeNet5
from pycls.registry import MODELS

STEP_S = 0.1


@MODELS.register("faulty")
class Faulty(LeNet5):
    """LeNet-5 that fails on request."""

    def __init__(self, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__(in_channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """As the net's."""
        if self.training:
            time.sleep(STEP_S)
            self.misbehave(Path(os.environ.get("FAULTS", "/nowhere")), os.environ.get("RANK", "0"))
        return super().forward(images)

    def misbehave(self, faults: Path, rank: str) -> None:
        """Does what a file in the folder asks for."""
        if (faults / f"raise-{rank}").exists():
            raise LookupError("no such sample: 17")
        if (faults / f"hang-{rank}").exists():
            time.sleep(600)
        if (faults / f"slow-{rank}").exists():
            time.sleep(2 * STEP_S)
