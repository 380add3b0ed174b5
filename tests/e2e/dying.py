"""Kills the process of a rank before its n-th change of the disk while it saves. Imported by the runs through ``IMPORTS``.

$DIE is ``rank:n``; without it, nothing happens. Only what the thread that writes checkpoints does is counted.
"""

import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from crash_points import Countdown  # type: ignore[import-not-found]


class InSaving(Countdown):  # type: ignore[misc]
    """Counts in that thread alone."""

    def change(self) -> None:
        """As the countdown's."""
        if threading.current_thread().name.startswith("checkpoints"):
            super().change()


rank, _, last = os.environ.get("DIE", "").partition(":")
if last and os.environ.get("RANK") == rank:
    InSaving(int(last))
