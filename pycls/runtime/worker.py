"""The worker's side of a launch: it dies with its launcher, and tells it what went wrong. Imports no torch."""

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pycls.runtime import slurm
from pycls.runtime.report import Report, first_cause, is_lost_peer, one_line, read_report, write_new, write_report

RENDEZVOUS = "PYCLS_RENDEZVOUS"
ERROR_FILE = "PYCLS_ERROR_FILE"
LAUNCHER_PID = "PYCLS_LAUNCHER_PID"
SUBMITTED = "PYCLS_SUBMITTED"
ERROR_NAME = "error-{rank}.json"
"""Name of a rank's ERROR_FILE; those of all ranks are in one folder."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SETTLE_S = 2.0  # for the process that is the cause to report, before one that suffers from it speaks


def is_worker() -> bool:
    """Whether this process is one of several, of :mod:`pycls.runtime.launch`, torchrun or srun."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def start_worker() -> None:
    """To be called first thing in a process that may be a worker; does nothing in one that is not.

    A task of srun takes its place from there. From here on the process dies with its launcher, and an uncaught
    exception is reported to it and ends the process at once.
    """
    slurm.adopt_task()
    if not is_worker():
        return
    # Threads that spin while they wait, as libgomp's do, cost processes that share cores a factor of ten. It is read
    # when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    die_with_parent()
    faulthandler.enable()
    sys.excepthook = end_by


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
    """Tell launcher and peers why this process is about to end; whether a launcher will show it to the user.

    Where the answer is False (no launcher, torchrun, or a submitted job), the caller shows the error itself. Only the
    first report of a process counts. Nothing is raised: a report that cannot be written must not hide the error.
    """
    own = os.environ.get(ERROR_FILE)
    if own:
        return write_report(own, error) and LAUNCHER_PID in os.environ
    elastic = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if elastic:
        details = {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(time.time()))}
        write_new(elastic, {"message": {"message": one_line(error), "extraInfo": details}})
    return False


def leave(exit_code: int) -> NoReturn:
    """End the process when all is done or an error was reported: a worker at once, any other process as usual.

    Shutting the interpreter down while collectives hang or peers are gone can block or abort, and bury the error. After FSDP
    it aborts now and then also when all is done: a thread of gloo is then still there.
    """
    if not is_worker():
        sys.exit(exit_code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def end_by(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End the process, which is a worker, by an error that was not caught: report it, show it, leave."""
    if isinstance(error, KeyboardInterrupt):  # the user knows
        return
    text = "".join(traceback.format_exception(kind, error, trace))
    shown_by_launcher = report_error(error)
    if is_lost_peer(error):  # N - 1 tracebacks would bury the one that matters
        text = "" if shown_by_launcher else f"lost another process: {one_line(error)}{_cause_among_peers()}\n"
    # PyTorch wraps this hook once there is a process group, and puts a buffer in the place of sys.stderr meanwhile.
    stream = sys.__stderr__ or sys.stderr
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"[rank {os.environ['RANK']}] {text}" if text else "")
        stream.flush()
    leave(1)


def _cause_among_peers() -> str:
    """What another process of a submitted job reports as its own trouble; empty if none does in time."""
    own = os.environ.get(ERROR_FILE)
    deadline = time.monotonic() + (_SETTLE_S if own else 0)
    while time.monotonic() < deadline:
        cause = first_cause(read_reports(Path(str(own)).parent))
        if cause is not None and not cause.lost_peer:
            return f"; the cause: {cause.who} failed: {cause.message}"
        time.sleep(0.1)
    return ""


def read_reports(folder: Path) -> list[Report]:
    """What the processes that share the folder for their reports have written."""
    reports = [read_report(path) for path in sorted(folder.glob(ERROR_NAME.format(rank="*")))]
    return [report for report in reports if report is not None]
