"""Why a process ended, in words, and as a file that its launcher and its peers read. Imports no torch."""

import json
import os
import re
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LOST_PEER = re.compile(
    r"gloo/|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket Timeout|socket has timed out",
    re.IGNORECASE,
)
_IN_WORDS = (
    (r"EADDRINUSE|address already in use", "the port at which the processes meet is taken; set MASTER_PORT to a free one"),
    (r"waiting for clients\. (\d+)/(\d+) clients joined", r"only \1 of \2 processes came to meet the others"),
    (r"while trying to connect to \(([^,)]+), (\d+)\)", r"rank 0 could not be reached at \1, port \2"),
    (r"Timed out waiting (\d+)\d{3}ms", r"another process did not answer for \1 s (RUNTIME.TIMEOUT)"),
    (r"Timeout\(ms\)=(\d+)\d{3}", r"another process did not answer for \1 s (RUNTIME.TIMEOUT)"),
    (r"(?:Connection (?:closed|reset) by peer|Read error) \[([^\]]+)\]", r"the process at \1 is gone"),
    (r"Connection (?:closed|reset)|Broken pipe|remote process exited|NCCL communicator was aborted",
     "another process is gone"),
    (r"NCCL.*(?:invalid usage|Duplicate GPU)", "NCCL cannot be used so: each process needs its own GPU"),
    (r"NCCL.*unhandled system error", "NCCL failed in the network or in shared memory; NCCL_DEBUG=WARN shows which"),
    (r"NCCL.*unhandled cuda error", "a GPU failed; NCCL_DEBUG=WARN shows which call"),
)  # fmt: skip


class Report(NamedTuple):
    """What a process wrote about its end.

    Attributes:
        time: seconds since the epoch.
        rank: whose.
        world_size: of how many.
        host: on which machine.
        type: of the error, as :func:`error_type` names it.
        message: the error as one line.
        lost_peer: whether it only suffers from another process's end.
    """

    time: float
    rank: int
    world_size: int
    host: str
    type: str
    message: str
    lost_peer: bool

    @property
    def who(self) -> str:
        """``rank 1 of 4 on host``."""
        return f"rank {self.rank} of {self.world_size} on {self.host}"


def write_report(path: str, error: BaseException) -> bool:
    """Write this process's report unless there is one; whether there is one now. Raises nothing."""
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    report = Report(time.time(), rank, world_size, socket.gethostname(), error_type(error), one_line(error),
                    is_lost_peer(error))  # fmt: skip
    return write_new(path, report._asdict())


def read_report(path: Path) -> Report | None:
    """The report in a file; None if there is none."""
    with suppress(OSError, ValueError, TypeError):
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    return None


def first_cause(reports: Iterable[Report]) -> Report | None:
    """The earliest report of an error that no other process caused, else the earliest; None without reports."""
    return min(reports, key=lambda report: (report.lost_peer, report.time), default=None)


def write_new(path: str, content: dict[str, object]) -> bool:
    """Write JSON unless the file is there; whether it is there now. Renamed into place: read whole or not at all."""
    if os.path.exists(path):
        return True
    try:
        part = Path(f"{path}.part")
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(path)
    except OSError:
        return False
    return True


def error_type(error: BaseException) -> str:
    """``InputError`` or ``RunError`` for these and what derives from them, else the class's own name."""
    names = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "pycls.errors"]
    return names[-1] if names else type(error).__name__


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error says only that another process is gone or late: a consequence, not a cause."""
    if any(cls.__name__ == "DistError" for cls in type(error).__mro__):
        return True
    unnamed = isinstance(error, RuntimeError) and error_type(error) != "RunError"  # as gloo raises them
    return unnamed and bool(_LOST_PEER.search(str(error)))


def one_line(error: BaseException) -> str:
    """The error as one line; gloo's, NCCL's and the store's in plain words, the others without their C++ stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error_type(error) in ("InputError", "RunError"):
        return " ".join(lines)
    if is_lost_peer(error):
        for pattern, words in _IN_WORDS:
            found = re.search(pattern, str(error), re.IGNORECASE)
            if found:
                return found.expand(words)
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
