"""The worker's side of a launch: it dies with its launcher, and tells it what went wrong. Imports no torch."""

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

RENDEZVOUS = "PYCLS_RENDEZVOUS"
ERROR_FILE = "PYCLS_ERROR_FILE"
LAUNCHER_PID = "PYCLS_LAUNCHER_PID"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOST_PEER = re.compile(
    r"gloo/|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket Timeout", re.IGNORECASE
)


def is_worker() -> bool:
    """Whether this process was started by a launcher, :mod:`pycls.runtime.launch` or torchrun."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def start_worker() -> None:
    """To be called first thing in a process that may be a worker; does nothing in one that is not.

    From here on the process dies with its launcher, and an uncaught exception is reported to it and ends the process
    at once.
    """
    if not is_worker():
        return
    die_with_parent()
    faulthandler.enable()
    sys.excepthook = _report_uncaught


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its launcher is gone, even by SIGKILL. Linux only.

    Nothing happens in a process that neither :mod:`pycls.runtime.launch` nor torchrun started.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if sys.platform != "linux" or (launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if launcher is not None and os.getppid() != int(launcher):  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def report_error(error: BaseException) -> bool:
    """Tell the launcher why this process is about to end; whether it will show it to the user.

    Where the answer is False (no launcher, or torchrun), the caller shows the error itself. Only the first report of
    a process counts. Nothing is raised: a report that cannot be written must not hide the error.
    """
    own = os.environ.get(ERROR_FILE)
    if own:
        return _write_new(own, {"time": time.time(), "type": error_type(error), "message": one_line(error),
                                "lost_peer": is_lost_peer(error)})  # fmt: skip
    elastic = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if elastic:
        details = {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(time.time()))}
        _write_new(elastic, {"message": {"message": one_line(error), "extraInfo": details}})
    return False


def leave(exit_code: int) -> NoReturn:
    """End the process after an error was reported: a worker at once, any other process as usual.

    Shutting the interpreter down while collectives hang or peers are gone can block or abort, and bury the error.
    """
    if not is_worker():
        sys.exit(exit_code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


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
    """The error as one line, without the C++ stack that some of PyTorch's messages carry."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if error_type(error) in ("InputError", "RunError"):
        return " ".join(lines)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _write_new(path: str, report: dict[str, object]) -> bool:
    """Write the report unless there is one; whether there is one now. Renamed into place: read whole or not at all."""
    if os.path.exists(path):
        return True
    try:
        part = Path(f"{path}.part")
        part.write_text(json.dumps(report), encoding="utf-8")
        part.replace(path)
    except OSError:
        return False
    return True


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):  # the user knows
        return
    text = "".join(traceback.format_exception(kind, error, trace))
    shown_by_launcher = report_error(error)
    if is_lost_peer(error):  # N - 1 tracebacks would bury the one that matters
        text = "" if shown_by_launcher else f"lost another process: {one_line(error)}\n"
    # PyTorch wraps this hook once there is a process group, and puts a buffer in the place of sys.stderr meanwhile.
    stream = sys.__stderr__ or sys.stderr
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"[rank {os.environ['RANK']}] {text}" if text else "")
        stream.flush()
    leave(1)
