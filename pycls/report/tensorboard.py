"""Curves for TensorBoard."""

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class TensorBoardLogger:
    """Writes event files; without the package, or when the disk is full, one log line and nothing more.

    Args:
        log_dir: folder of the event files.
        enabled: whether to write at all (rank 0 only, and only if the user wants it).
        purge_step: the step a resumed run continues from: TensorBoard then drops what an earlier process had written
            for this step and later ones, so that no curve doubles back. None for a fresh run.
    """

    def __init__(self, log_dir: str | os.PathLike[str], enabled: bool = True, purge_step: int | None = None) -> None:
        self.log_dir = os.fspath(log_dir)
        self.enabled = enabled
        self.purge_step = purge_step
        self._writer: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of the curves named by the mapping's keys."""
        if not self.enabled:
            return
        try:
            if self._writer is None:
                self._writer = _open(self.log_dir, self.purge_step)
            from tensorboard.compat.proto.summary_pb2 import Summary

            # one event for all: an event a curve would slow down the short steps of a small net
            points = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
            self._writer.add_summary(Summary(value=points), step)
        except ImportError:
            self._give_up("the package tensorboard is not installed")
        except OSError as error:
            self._give_up(str(error))

    def close(self) -> None:
        """Write what is still buffered and close the files."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(str(error))
            self._writer = None

    def __enter__(self) -> "TensorBoardLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, reason: str) -> None:
        self.enabled = False
        logger.warning("no TensorBoard curves are written: %s", reason)


def _open(log_dir: str, purge_step: int | None) -> Any:
    """A new event file. The imports are late because they take seconds."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils.tensorboard import FileWriter

    writer = FileWriter(log_dir)
    if purge_step is not None:
        writer.add_event(Event(step=purge_step, file_version="brain.Event:2"))
        writer.add_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
    return writer
