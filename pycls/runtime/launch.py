"""N local processes that run the same command line, and end together.

Not by torchrun's agent: when a worker fails it gives the others, which treat SIGTERM as a request to finish their
step, a fixed 30 s; it forgets their exit codes when it is itself asked to stop; and it needs torch (seconds) to start.
Workers meet at a file (:mod:`pycls.runtime.distributed`), so there is no port to race for.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pycls.errors import InputError, RunError
from pycls.runtime.report import Report, read_report
from pycls.runtime.signals import HANDLED, STOPPED
from pycls.runtime.worker import ERROR_FILE, ERROR_NAME, LAUNCHER_PID, RENDEZVOUS

POLL_S = 0.05
SETTLE_S = 1.0  # after a failure: time for the others to fail by themselves and to report
FAILURE_GRACE_S = 10.0  # then from SIGTERM to SIGKILL
STOP_GRACE_S = 30.0  # from a request to stop (time to finish a step and save a checkpoint) to SIGKILL
INSIST_GRACE_S = 2.0  # the same after a second Ctrl-C

_STOPPED = (*STOPPED, *(128 - code for code in STOPPED))
"""Exit codes of a worker that stopped on request, or that the signal ended before it was ready to."""


def launch_local(num_procs: int, argv: Sequence[str] | None = None) -> int:
    """Run a Python command line in ``num_procs`` processes on this machine and wait for all of them.

    Each finds RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE in its environment and calls
    :func:`pycls.runtime.worker.start_worker` first thing. When one fails, all are ended. SIGTERM, SIGINT, SIGHUP,
    SIGUSR1 and SIGUSR2 to the launcher ask the workers to stop, and are passed on each time they come. Who is not done
    30 s later (2 s after a second SIGINT) is killed.

    Args:
        num_procs: how many processes, at least 1.
        argv: what follows the interpreter on the command line; None for this process's own.

    Returns:
        0 when all ended well, or 128 + the signal when they stopped on request (143 for SIGTERM).

    Raises:
        InputError: a worker found the user's input wrong.
        RunError: a worker failed otherwise; the first one's rank, host, exit code or signal, and last error line.
    """
    if num_procs < 1:
        raise ValueError(f"cannot launch {num_procs} processes")
    command = [sys.executable, *(sys.orig_argv[1:] if argv is None else argv)]
    with tempfile.TemporaryDirectory(prefix="pycls-launch-") as folder, _Signals() as signals:
        workers: list[_Worker] = []
        try:
            for rank in range(num_procs):
                workers.append(_start(command, rank, num_procs, Path(folder)))
            return _supervise(workers, signals)
        finally:
            _kill(workers)


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    error_file: Path
    exit_code: int | None = None
    ended: float = 0.0  # seconds since the epoch, when it was seen to have ended
    terminated: bool = False  # by us, to end because another one failed

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.exit_code is None:
            self.exit_code = self.process.poll()
            self.ended = time.time()
        return self.exit_code is not None

    def report(self) -> Report | None:
        return read_report(self.error_file)


class _Signals:
    """Collects the requests to stop that this process gets."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in HANDLED:
            if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def insisted(self) -> bool:
        """Whether Ctrl-C came twice."""
        return self.interrupts > 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        self.pending.append(signal.SIGTERM if number == signal.SIGHUP else number)


def _start(command: list[str], rank: int, num_procs: int, folder: Path) -> _Worker:
    error_file = folder / ERROR_NAME.format(rank=rank)
    env = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(num_procs),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_procs),
        RENDEZVOUS: str(folder / "rendezvous"),
        ERROR_FILE: str(error_file),
        LAUNCHER_PID: str(os.getpid()),
    }
    # All are on this machine: gloo need not look up its host name, which may not resolve where there is no network.
    env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    # Its own session, so that Ctrl-C at a terminal reaches a worker once, from here, and not twice.
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    return _Worker(rank, process, error_file)


def _supervise(workers: list[_Worker], signals: _Signals) -> int:
    """Wait for the workers, passing requests to stop on to them; see :func:`launch_local` for what comes of it."""
    deadline = math.inf  # for stopping
    while True:
        while signals.pending:
            _send(workers, signals.pending.pop(0))
            deadline = min(deadline, time.monotonic() + (INSIST_GRACE_S if signals.insisted else STOP_GRACE_S))
        running = [worker for worker in workers if not worker.poll()]
        codes = [worker.exit_code for worker in workers if worker.exit_code is not None]
        if deadline == math.inf and any(code in STOPPED for code in codes):  # a worker got the signal directly
            deadline = time.monotonic() + STOP_GRACE_S
        harmless = (0,) if deadline == math.inf else (0, *_STOPPED)
        if any(code not in harmless for code in codes):
            _end_others(workers)
            raise _failure(workers, harmless)
        if not running:
            return max((128 - code if code < 0 else code) for code in codes)
        if time.monotonic() > deadline:
            if signals.insisted:
                return 128 + signal.SIGINT
            late = ", ".join(str(worker.rank) for worker in running)
            raise RunError(f"rank {late} did not stop within {STOP_GRACE_S:.0f} s of being asked to, and was killed")
        time.sleep(POLL_S)


def _end_others(workers: list[_Worker]) -> None:
    """One has failed: let the others report why they fail too, then end them, gently at first."""
    if not _wait(workers, SETTLE_S):
        for worker in workers:
            worker.terminated = worker.exit_code is None
        _send(workers, signal.SIGTERM)
        if not _wait(workers, FAILURE_GRACE_S):
            _kill(workers)


def _wait(workers: list[_Worker], seconds: float) -> bool:
    """Whether all have ended within the time."""
    deadline = time.monotonic() + seconds
    while any(not worker.poll() for worker in workers):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _send(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        if not worker.poll():
            worker.process.send_signal(number)


def _kill(workers: list[_Worker]) -> None:
    """End what still runs at once, with the processes it started."""
    for worker in workers:
        if not worker.poll():
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker.poll()


def _failure(workers: list[_Worker], harmless: tuple[int, ...]) -> InputError | RunError:
    """The first cause: an error of a worker's own or its sudden death, rather than the loss of another worker."""
    suspects: list[tuple[int, float, _Worker, Report | None]] = []
    for worker in workers:
        report = worker.report()
        if report is not None:
            suspects.append((2 if report.lost_peer else 0, report.time, worker, report))
        elif worker.exit_code not in harmless and not worker.terminated:
            # NCCL's watchdog aborts a process that has lost another one.
            suspects.append((1 if worker.exit_code == -signal.SIGABRT else 0, worker.ended, worker, None))
    weight, _, worker, report = min(suspects, key=lambda suspect: suspect[:2])
    if report is not None and report.type == "InputError":
        return InputError(report.message)
    silent = [str(worker.rank) for worker in workers if worker.terminated and worker.report() is None]
    on = f"of {len(workers)} on {socket.gethostname()}"
    if weight > 0 and silent:  # the others only lost a peer
        return RunError(f"rank {', '.join(silent)} {on} hangs and was ended: rank {worker.rank} "
                        f"{_end(worker.exit_code, report)}")  # fmt: skip
    return RunError(f"rank {worker.rank} {on} {_end(worker.exit_code, report)}")


def _end(exit_code: int | None, report: Report | None) -> str:
    if exit_code is None or exit_code >= 0:
        how = f"exit code {exit_code}"
    else:
        try:
            how = signal.Signals(-exit_code).name
        except ValueError:  # a real-time signal
            how = f"signal {-exit_code}"
    if report is not None:
        return f"failed ({how}): {report.message}"
    if exit_code is None or exit_code >= 0:
        return f"failed ({how}) without an error message"
    hint = ", as the kernel does when memory runs out" if exit_code == -signal.SIGKILL else ""
    return f"was killed by {how}{hint}"
